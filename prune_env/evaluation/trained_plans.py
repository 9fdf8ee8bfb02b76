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
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from ..common.expect import expect
from ..common.files import replacing
from ..common.rank_correlation import FEWEST, Pair, RankCorrelation, rank_correlation, rank_difference
from ..common.tensor_files import DamagedFileError

FILE = Path(__file__).with_name("resnet20-cifar10-0.3-trained-v1.npz")
SIGNAL = "signals."
"""Start of the names of signals in a file."""
TEXTS = ("name", "target_macs", "lower_is_better", "settings")
"""Fields that a file holds as JSON."""
ARRAYS: dict[str, tuple[type, str]] = {
    "groups": (str, "G"),
    "full_plan": (int, "G"),
    "plans": (int, "PG"),
    "macs_ratio": (float, "P"),
    "source": (str, "P"),
    "epochs": (float, "E"),
    "seeds": (int, "S"),
    "reward_accuracy": (float, "PES"),
    "test_accuracy": (float, "PES"),
}
"""Fields that are arrays: their types and shapes."""
Scores = str | Sequence[float] | np.ndarray
"""The name of a signal, or a number for each plan [P], higher for better ones; NaN leaves a plan out."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedPlans:
    """Pruned networks of equal MACs: what could be known of each before training, and its accuracy after training.

    Its arrays cannot be written to.

    Raises:
        ValueError: The shapes do not fit together; the message names the field.

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
    """The rule or search that made each plan, the first one of several; `drawn` for plans that were drawn at random
    (`random` is random search)."""
    epochs: np.ndarray = field(repr=False)  # float64 [E]
    """Lengths of training, the shortest first."""
    seeds: np.ndarray = field(repr=False)  # int64 [S]
    """Seeds of the trainings."""
    reward_accuracy: np.ndarray = field(repr=False)  # float64 [P, E, S]
    """Accuracy on the reward images after training; NaN where a plan was not trained."""
    test_accuracy: np.ndarray = field(repr=False)  # float64 [P, E, S]
    """Accuracy on the test images after training; NaN where a plan was not trained."""
    signals: Mapping[str, np.ndarray] = field(repr=False)  # float64 [P] each
    """What can be measured before training, by name: `output_change` is the predicted change of the outputs,
    `search_accuracy` the accuracy as cut on the images of a search, `accuracy` and `cross_entropy` are those as cut on
    all reward images, and with `finetuned_` in front those after ten batches of distillation."""
    lower_is_better: Sequence[str] = field(repr=False)
    """Names of the signals that are lower for better networks."""
    settings: Mapping[str, Any] = field(repr=False)
    """The problem, the fingerprint of the original weights, and the recipe of the training."""

    def __post_init__(self) -> None:
        sizes = {"P": len(self.plans), "G": len(self.groups), "E": len(self.epochs), "S": len(self.seeds)}
        for name, (kind, letters) in ARRAYS.items():
            object.__setattr__(self, name, _constant(name, getattr(self, name), kind, [sizes[one] for one in letters]))
        signals = {name: _constant(name, values, float, [sizes["P"]]) for name, values in self.signals.items()}
        object.__setattr__(self, "signals", signals)
        object.__setattr__(self, "lower_is_better", tuple(self.lower_is_better))
        if unknown := set(self.lower_is_better) - set(signals):
            raise ValueError(f"lower_is_better names no signal: {min(unknown)!r}")
        for name in ("epochs", "seeds"):
            if len(set(getattr(self, name).tolist())) < sizes[name[0].upper()]:
                raise ValueError(f"{name} has the same number twice")

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
                    texts = json.loads(str(arrays["texts"]))
                    signals = {name: arrays[SIGNAL + name] for name in texts.pop("signals")}
                    return cls(signals=signals, **texts, **{name: arrays[name] for name in ARRAYS})
            except Exception as error:  # damaged archives raise anything
                raise DamagedFileError(f"{file} is damaged, or no table of trained plans; get it again") from error

    def save(self, file: str | Path) -> None:
        """Write the table under a temporary name and rename it."""
        texts = {name: getattr(self, name) for name in TEXTS} | {"signals": [*self.signals]}
        arrays = {name: getattr(self, name) for name in ARRAYS}
        arrays |= {SIGNAL + name: values for name, values in self.signals.items()}
        with replacing(Path(file)) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, texts=np.array(json.dumps(texts)), **arrays)

    def trainings(self, epochs: float) -> np.ndarray:
        """Return with how many seeds each plan was trained for so many epochs, int64 [P].

        Raises:
            ValueError: The table has no such length.
        """
        return np.isfinite(self._tests(epochs)).sum(1)

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

    def rank_correlation(self, scores: Scores, epochs: float) -> RankCorrelation:
        """Return how well scores rank the plans by their test accuracy after training.

        It is the mean over the seeds that all trained plans have.

        Args:
            scores: A number for each plan [P], higher for better ones; plans with NaN do not count. Or the name of a
                signal.
            epochs: Length of the training, one of `self.epochs`.

        Raises:
            ValueError: There is no such signal or length, not one number for each plan, or too few plans to rank.
        """
        return self._checked(rank_correlation(self._pairs(scores, epochs)), epochs)

    def rank_difference(self, scores: Scores, others: Scores, epochs: float) -> RankCorrelation:
        """Return how much better `scores` rank the plans than `others` do: see `rank_correlation`.

        The interval of a difference is narrower than those of its parts suggest, because both rank the same plans.
        """
        return self._checked(rank_difference(self._pairs(scores, epochs), self._pairs(others, epochs)), epochs)

    def retraining(self, epochs: float) -> RankCorrelation:
        """Return how well one training ranks the plans by another of the same length, with another seed.

        Only plans with all seeds of this length count, so compare it with signals of the same plans, see `subset`. A
        signal with this correlation tells as much as a whole training; one without noise could tell more. Both
        trainings are measured on the same test images.

        Args:
            epochs: Length of the training, one of `self.epochs`.

        Raises:
            ValueError: There is no such length, or there are too few plans with several seeds.
        """
        tests = [one for one in self._tests(epochs).T if np.isfinite(one).any()]
        return self._checked(rank_correlation(list(itertools.combinations(tests, 2))), epochs)

    def _pairs(self, scores: Scores, epochs: float) -> list[Pair]:
        """Return the scores with the test accuracies of every seed that all trained plans have."""
        if isinstance(scores, str):
            if scores not in self.signals:
                raise ValueError(f"there is no signal {scores!r}; choose among {', '.join(self.signals)}")
            scores = self.signals[scores] * (-1 if scores in self.lower_is_better else 1)
        try:
            values = np.ma.masked_array(scores, dtype=float).filled(np.nan)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # a tensor with gradients, for example
            raise ValueError(f"scores must be real numbers, one for each of the {len(self.plans)} plans") from error
        if values.shape != (len(self.plans),):
            raise ValueError(
                f"scores must have one number for each of the {len(self.plans)} plans; these have the shape "
                f"{values.shape}"
            )
        tests = self._tests(epochs)
        known = np.isfinite(tests)  # [P, S]
        complete = np.flatnonzero((known == known.any(1, keepdims=True)).all(0))
        return [(values, tests[:, seed]) for seed in complete]

    def _tests(self, epochs: float) -> np.ndarray:
        """Return the test accuracies of a length, [P, S]."""
        expect(epochs, Real, "epochs must be a number", f"choose one of {self.epochs.tolist()}")
        place = np.flatnonzero(self.epochs == epochs)
        if not len(place):
            raise ValueError(f"no plan was trained for {epochs} epochs; choose one of {self.epochs.tolist()}")
        return self.test_accuracy[:, place[0]]

    def _checked(self, found: RankCorrelation | None, epochs: float) -> RankCorrelation:
        if found is None:
            trained = self.trainings(epochs)
            once, twice = np.count_nonzero(trained), np.count_nonzero(trained > 1)
            raise ValueError(
                f"a rank correlation needs {FEWEST} plans with different scores and accuracies; of {len(trained)} "
                f"plans, {once} were trained for {epochs} epochs, {twice} with several seeds, and those with NaN as a "
                "score do not count"
            )
        return found


def _constant(name: str, values: Any, kind: type, shape: Sequence[int]) -> np.ndarray:
    """Return a copy that cannot be written to.

    Raises:
        ValueError: The values have another shape or type.
    """
    try:
        array: np.ndarray = np.array(values, kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be an array of {kind.__name__}") from error
    if array.shape != tuple(shape):
        raise ValueError(f"{name} must have the shape {tuple(shape)}, like the other fields; it has {array.shape}")
    array.flags.writeable = False
    return array
