"""The tabulated problem: a small network on digits whose every plan of three budgets was evaluated once.

Plans that cut a single group are tabulated as well, for methods that measure how sensitive each group is. No network
runs when a plan is evaluated, and the true optimum is known, so algorithms can be compared in minutes. The file also
holds the network's weights, because another training would give another problem. It was made by `python -m
benchmarks.make.tabulate`. Letters: P plans, G groups.
"""

from __future__ import annotations

import hashlib
import json
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..common.files import replacing
from ..data import DataError, DataSplits, load
from ..evaluation.config import EvaluationConfig
from ..evaluation.live import LiveEvaluator
from ..networks.registry import create
from ..pruning import Plan
from ..pruning.problem import PruningProblem
from .config import EnvConfig
from .env import FilterPruneEnv
from .validation import check_rules

FILE = Path(__file__).with_name("small_cnn_digits.npz")
FIXED = ("round_to", "importance", "reward_images", "calibration_images", "problem_seed")
"""Settings that the tabulated accuracies depend on. `Table.config` names other restrictions; the rest is free."""


@dataclass(frozen=True, eq=False)
class Table:
    """Accuracies of all plans that meet one of several targets, and of all plans that cut a single group."""

    settings: Mapping[str, Any]
    """What was tabulated: network, data and fingerprint of the images, `targets`, `images`, and the FIXED settings."""
    weights: Mapping[str, np.ndarray] = field(repr=False)
    """State dict of the network. Parameters are float16 and convert to float32 without loss."""
    plans: np.ndarray = field(repr=False)  # uint8 [P, G]
    """Filters kept by each plan."""
    target: np.ndarray = field(repr=False)  # uint8 [P]
    """The target that each plan meets: an index into settings["targets"], or its length for none."""
    correct: np.ndarray = field(repr=False)  # uint16 [P]
    """Reward images that each plan's network classifies correctly; settings["original_correct"] for the original."""

    @classmethod
    def load(cls, file: Path = FILE) -> Table:
        """Read a table.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        with np.load(file, allow_pickle=False) as arrays:
            weights = {
                name.removeprefix("weights."): arrays[name] for name in arrays.files if name.startswith("weights.")
            }
            numbers = (arrays[name] for name in ("plans", "target", "correct"))
            return cls(json.loads(str(arrays["settings"])), weights, *numbers)

    def save(self, file: Path = FILE) -> None:
        """Write the table under a temporary name and rename it."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ("plans", "target", "correct")}
        arrays |= {f"weights.{name}": value for name, value in self.weights.items()}
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, settings=np.array(json.dumps(dict(self.settings))), **arrays)

    def network(self) -> nn.Module:
        """Return the original network, float32, in eval mode."""
        network = create(self.settings["network"], self.settings["classes"], self.settings["channels"])
        state = {
            name: torch.from_numpy(value.astype(np.float32) if value.dtype == np.float16 else value.copy())
            for name, value in self.weights.items()
        }
        network.load_state_dict(state)
        return network.eval()

    def config(self, settings: Mapping[str, Any]) -> EnvConfig:
        """Return the table's settings, updated by the given fields of `EnvConfig`.

        Raises:
            ValueError: The table has no accuracies for a setting; the message names it.
        """
        config = EnvConfig(**{**{name: self.settings[name] for name in FIXED}, **settings})
        values = asdict(config)
        for name in FIXED:
            if values[name] != self.settings[name]:
                raise ValueError(
                    f"{name}={values[name]!r} was not tabulated; the tabulated problem has {name}="
                    f"{self.settings[name]!r}: leave the setting out, or use make_env"
                )
        if config.cost != "macs":
            raise ValueError(f"target_{config.cost} was not tabulated; set target_macs, or use make_env")
        for target in config.targets:
            if target not in self.settings["targets"]:
                raise ValueError(
                    f"target_macs={target} was not tabulated; choose among "
                    f"{', '.join(map(str, self.settings['targets']))}"
                )
        for name in ("every_round", "finetune_batches", "round_finetune_batches", "exclude", "only"):
            if values[name]:
                raise ValueError(
                    f"{name}={values[name]!r} needs accuracies that were not tabulated: the table holds finished plans "
                    "of all groups with the original weights; leave the setting out, or use make_env"
                )
        return config

    def data(self) -> DataSplits:
        """Return the data of the table.

        Raises:
            DataError: The images differ from those of the table.
        """
        data = load(self.settings["data"])
        if images_fingerprint(data) != self.settings["fingerprint"]:
            raise DataError(
                f"the installed images of {data.name!r} differ from those that were tabulated; install the release of "
                "scikit-learn with the original images, or use make_env"
            )
        return data

    def accuracies(self, target: int) -> dict[Plan, float]:
        """Return the accuracy of every plan with this index in `target`."""
        chosen = self.target == target
        plans = map(tuple, self.plans[chosen].tolist())
        return dict(zip(plans, (self.correct[chosen] / self.settings["images"]).tolist(), strict=True))


class TabulatedEvaluator:
    """Looks up the accuracies of the plans that meet a target. See `Evaluator` for the methods.

    Networks, and accuracies of networks with other weights, come from a live evaluator.

    Args:
        table: The tabulated accuracies.
        problem: The tabulated problem.
        config: Settings of the game, with one or more of the table's targets.
    """

    def __init__(self, table: Table, problem: PruningProblem, config: EnvConfig) -> None:
        targets = config.targets
        self._targets = targets
        tabulated = table.settings["targets"]
        by_target = {target: table.accuracies(tabulated.index(target)) for target in targets}
        self.accuracies: Mapping[Plan, float] = dict(ChainMap(*by_target.values()))
        """Accuracy of every plan that meets a target."""
        self._known = table.accuracies(len(tabulated)) | self.accuracies
        self.problem = problem
        self.config: EvaluationConfig = config
        self.device = torch.device("cpu")
        self.original_accuracy: float = table.settings["original_correct"] / table.settings["images"]
        self.optima = {target: max(accuracies.values()) for target, accuracies in by_target.items()}
        """The highest accuracy that any algorithm can find, by target."""
        self.optimum = max(self.optima.values())
        """The highest of `optima`."""
        self._round_to = table.settings["round_to"]

    @cached_property
    def _live(self) -> LiveEvaluator:
        return LiveEvaluator(self.problem, self.config)  # made when a network runs for the first time

    def accuracy(self, plan: Plan) -> float:
        """Return the tabulated accuracy.

        Raises:
            ValueError: The plan is not in the table.
        """
        try:
            return self._known[tuple(plan)]
        except KeyError:
            raise ValueError(
                f"plan {tuple(plan)} was not tabulated; for targets {self._targets} the table holds the plans whose "
                f"counts are multiples of {self._round_to} and whose MACs lie at most one point below, and the plans "
                "that cut a single group"
            ) from None

    def submit(self, plan: Plan) -> None:
        """Do nothing: every accuracy is known."""

    def accuracy_of(self, network: nn.Module) -> float:
        """Measure the accuracy of a network."""
        return self._live.accuracy_of(network)

    def network(self, plan: Plan) -> nn.Module:
        """Return the plan's network with recalibrated BatchNorm statistics."""
        return self._live.network(plan)

    def recalibrate(self, network: nn.Module) -> None:
        """Re-estimate the network's BatchNorm statistics, in place."""
        self._live.recalibrate(network)

    def remember(self, plan: Plan, accuracy: float) -> None:
        """Do nothing: every accuracy is known."""

    def close(self) -> None:
        """Do nothing: there are no workers."""


def make_tabulated_env(*, render_mode: str | None = None, **settings: Any) -> FilterPruneEnv:
    """Make the environment of the tabulated problem: small_cnn on digits, every accuracy known.

    `env.evaluator.optimum` is the highest accuracy that any algorithm can find.

    Args:
        render_mode: ansi, rgb_array or None.
        **settings: Fields of `EnvConfig`. `target_macs` is 0.5 (default), 0.3 or 0.2, or several of them; rates,
            rounds, `min_filters`, `max_rate` and rewards are free.

    Raises:
        ValueError: A setting was not tabulated.
        DataError: The installed digits differ from those of the table.
    """
    table = Table.load()
    config = table.config(settings)
    check_rules(config, None, render_mode)
    problem = PruningProblem.create(table.network(), table.data(), config)
    evaluator = TabulatedEvaluator(table, problem, config)
    return FilterPruneEnv(problem, config, evaluator=evaluator, render_mode=render_mode)


def images_fingerprint(data: DataSplits, parts: Sequence[str] = ("calibration", "reward")) -> str:
    """Return a hash of the images and labels of some splits; the same on every machine.

    Args:
        data: The data.
        parts: Names of the splits; by default those that accuracies in a search depend on.
    """
    digest = hashlib.blake2b(digest_size=16)
    for split in (getattr(data, part) for part in parts):
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return digest.hexdigest()
