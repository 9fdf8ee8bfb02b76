"""Plans of one network whose pruned networks were all trained: a table to test what predicts a network's worth.

A search sees a network as cut, and wants the accuracy after training. The table holds both for many plans of equal
MACs, so that a new signal can be judged in minutes, without training anything. It was made by `python -m
benchmarks.worth.tabulate`.

Letters: P plans, G groups, E lengths of training, S seeds.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from ..common.files import replacing
from ..common.rank_correlation import FEWEST, Pair, RankCorrelation, rank_correlation, rank_difference
from ..common.tensor_files import DamagedFileError

FILE = Path(__file__).with_name("resnet20-cifar10-0.3-trained-v1.npz")
SIGNAL = "signals."
"""Start of the names of signals in a file."""
TEXTS = ("name", "target_macs", "lower_is_better", "settings")
"""Fields that a file holds as JSON; the others are arrays."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedPlans:
    """Pruned networks of equal MACs: what could be known of each before training, and its accuracy after training.

    Raises:
        ValueError: The shapes do not fit together.

    Example:
        >>> table = TrainedPlans.load()
        >>> print(table.rank_correlation("output_change", epochs=2))  # doctest: +SKIP
    """

    name: str
    target_macs: float
    """Fraction of the original MACs that the plans may cost."""
    groups: np.ndarray = field(repr=False)  # str [G]
    """Names of the groups."""
    full_plan: np.ndarray = field(repr=False)  # int64 [G]
    """Filters of the original groups."""
    plans: np.ndarray = field(repr=False)  # int64 [P, G]
    """Filters kept by each plan."""
    macs_ratio: np.ndarray = field(repr=False)  # float64 [P]
    """MACs of each plan as a fraction of the original network's."""
    source: np.ndarray = field(repr=False)  # str [P]
    """The rule or search that made each plan; `drawn` for plans that were drawn at random."""
    epochs: np.ndarray = field(repr=False)  # float64 [E]
    """Lengths of training, the shortest first."""
    seeds: np.ndarray = field(repr=False)  # int64 [S]
    """Seeds of the trainings."""
    reward_accuracy: np.ndarray = field(repr=False)  # float64 [P, E, S]
    """Accuracy on the reward images after training; NaN where a plan was not trained."""
    test_accuracy: np.ndarray = field(repr=False)  # float64 [P, E, S]
    """Accuracy on the test images after training; NaN where a plan was not trained."""
    signals: Mapping[str, np.ndarray] = field(repr=False)  # float64 [P] each
    """What can be measured before training, by name."""
    lower_is_better: Sequence[str] = field(repr=False)
    """Names of the signals that are lower for better networks."""
    settings: Mapping[str, Any] = field(repr=False)
    """The problem, the fingerprint of the original weights, and the recipe of the training."""

    def __post_init__(self) -> None:
        trainings = (len(self.plans), len(self.epochs), len(self.seeds))
        shapes = {"plans": (len(self.plans), len(self.groups)), "full_plan": (len(self.groups),)}
        shapes |= {"reward_accuracy": trainings, "test_accuracy": trainings}
        names = (*shapes, "macs_ratio", "source")
        arrays = {name: getattr(self, name) for name in names} | dict(self.signals)
        for name, array in arrays.items():
            if array.shape != shapes.get(name, (len(self.plans),)):
                raise ValueError(f"{name} has the shape {array.shape}, which does not fit {trainings[0]} plans")

    @classmethod
    def load(cls, file: str | Path = FILE) -> TrainedPlans:
        """Read a table.

        Args:
            file: The table; by default that of the package, ResNet-20 on CIFAR-10 at 30 % of its MACs.

        Raises:
            OSError: The file does not exist or cannot be read.
            DamagedFileError: The file is damaged, or no table of trained plans.
        """
        with Path(file).open("rb") as stream:
            try:
                with np.load(stream, allow_pickle=False) as arrays:
                    values = {name: arrays[name] for name in arrays}
                texts = json.loads(str(values.pop("texts")))
                signals = {name.removeprefix(SIGNAL): values.pop(name) for name in [*values] if name.startswith(SIGNAL)}
                return cls(signals=signals, **texts, **values)
            except (ValueError, LookupError, TypeError, AttributeError, EOFError, BadZipFile, ZlibError) as error:
                raise DamagedFileError(f"{file} is damaged, or no table of trained plans; get it again") from error

    def save(self, file: str | Path) -> None:
        """Write the table under a temporary name and rename it."""
        texts = {name: getattr(self, name) for name in TEXTS}
        names = [one.name for one in fields(self) if one.name not in (*TEXTS, "signals")]
        arrays = {name: getattr(self, name) for name in names}
        arrays |= {SIGNAL + name: values for name, values in self.signals.items()}
        with replacing(Path(file)) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, texts=np.array(json.dumps(texts)), **arrays)

    def trainings(self, epochs: float) -> np.ndarray:
        """Return with how many seeds each plan was trained for so many epochs, int64 [P].

        Raises:
            ValueError: No plan was.
        """
        return np.isfinite(self._tests(epochs)).sum(0)

    def subset(self, chosen: np.ndarray) -> TrainedPlans:
        """Return a table with some of the plans.

        Args:
            chosen: Which plans to keep, bool [P].

        Raises:
            ValueError: `chosen` has another type or shape.
        """
        chosen = np.asarray(chosen)
        if chosen.shape != (len(self.plans),) or chosen.dtype != bool:
            raise ValueError(f"chosen must have True or False for each of the {len(self.plans)} plans")
        names = ("plans", "macs_ratio", "source", "reward_accuracy", "test_accuracy")
        signals = {name: values[chosen] for name, values in self.signals.items()}
        return replace(self, signals=signals, **{name: getattr(self, name)[chosen] for name in names})

    def rank_correlation(self, scores: str | Sequence[float] | np.ndarray, epochs: float) -> RankCorrelation:
        """Return how well scores rank the plans by their test accuracy after training.

        It is the mean over the seeds that all plans of this length were trained with.

        Args:
            scores: A number for each plan [P], higher for better ones; plans with NaN do not count. Or the name of a
                signal.
            epochs: Length of the training, one of `self.epochs`.

        Raises:
            ValueError: There is no such signal or length, not one number for each plan, or too few plans to rank.
        """
        return self._checked(rank_correlation(self._pairs(scores, epochs)), epochs)

    def rank_difference(
        self,
        scores: str | Sequence[float] | np.ndarray,
        others: str | Sequence[float] | np.ndarray,
        epochs: float,
    ) -> RankCorrelation:
        """Return how much better `scores` rank the plans than `others` do: see `rank_correlation`.

        The interval of a difference is narrower than those of its parts suggest, because both rank the same plans.
        """
        return self._checked(rank_difference(self._pairs(scores, epochs), self._pairs(others, epochs)), epochs)

    def retraining(self, epochs: float) -> RankCorrelation:
        """Return how well one training ranks the plans by another of the same length, with another seed.

        Only plans with all seeds of this length count. A signal with this correlation tells as much as a whole
        training; one without noise could tell more. Both trainings are measured on the same test images.

        Args:
            epochs: Length of the training, one of `self.epochs`.

        Raises:
            ValueError: There is no such length, or there are too few plans with several seeds.
        """
        return self._checked(rank_correlation(list(itertools.combinations(self._tests(epochs), 2))), epochs)

    def _pairs(self, scores: str | Sequence[float] | np.ndarray, epochs: float) -> list[Pair]:
        """Return the scores with the test accuracies of every seed that all plans of this length have."""
        if isinstance(scores, str):
            if scores not in self.signals:
                raise ValueError(f"there is no signal {scores!r}; choose among {', '.join(self.signals)}")
            scores = self.signals[scores] * (-1 if scores in self.lower_is_better else 1)
        values = np.asarray(scores, float)
        if values.shape != (len(self.plans),):
            raise ValueError(
                f"scores must have one number for each of the {len(self.plans)} plans; these have the shape "
                f"{values.shape}"
            )
        tests = self._tests(epochs)
        most = max(np.isfinite(one).sum() for one in tests)
        return [(values, one) for one in tests if np.isfinite(one).sum() == most]

    def _tests(self, epochs: float) -> list[np.ndarray]:
        """Return the test accuracies [P] of every seed of a length."""
        place = np.flatnonzero(self.epochs == epochs)
        if not len(place):
            known = ", ".join(f"{one:g}" for one in self.epochs)
            raise ValueError(f"no plan was trained for {epochs:g} epochs; choose among {known}")
        return [one for one in self.test_accuracy[:, place[0]].T if np.isfinite(one).any()]

    def _checked(self, found: RankCorrelation | None, epochs: float) -> RankCorrelation:
        if found is None:
            raise ValueError(
                f"fewer than {FEWEST} plans can be ranked after {epochs:g} epochs ({len(self.plans)} plans in the "
                "table; those without these trainings, or with NaN as a score, do not count), or all scores are equal"
            )
        return found
