"""A problem whose every answer is known: the small network on digits, all plans of three budgets evaluated once.

Plans that cut a single group are there as well, for those who look how sensitive each is.

Nothing is run when a plan is asked for, and the true optimum is known, so that algorithms can be compared in minutes.
The file holds the network, too: another training of it would be another problem. `python -m benchmarks.make.tabulate`
made it. Letters: P plans, G groups.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..common.files import replacing
from ..data import DataSplits
from ..networks.registry import create
from ..pruning import Plan
from .config import EnvConfig

if TYPE_CHECKING:
    from ..evaluation.evaluator import Evaluator
    from ..evaluation.racing import Race

FILE = Path(__file__).with_name("small_cnn_digits.npz")
FIXED = ("round_to", "importance", "reward_images", "calibration_images", "problem_seed")
"""Settings that an answer depends on; all others are free, but for those that `Table.config` names."""


@dataclass(frozen=True, eq=False)
class Table:
    """Accuracies of all plans that meet one of several budgets, and of all that cut a single group.

    settings  what was tabulated: network, data and its fingerprint, `targets`, images, and the settings in FIXED
    weights   the network's state dict; parameters in float16, of which float32 is made again without loss
    plans     filters kept, uint8 [P, G]
    target    which of the targets each plan meets: an index into settings["targets"], or its length for none; uint8 [P]
    right     reward images that each plan's network gets right, uint16 [P]; `original_right` are the unpruned one's
    """

    settings: Mapping[str, Any]
    weights: Mapping[str, np.ndarray] = field(repr=False)
    plans: np.ndarray = field(repr=False)
    target: np.ndarray = field(repr=False)
    right: np.ndarray = field(repr=False)

    @classmethod
    def load(cls, file: Path = FILE) -> Table:
        """Raises FileNotFoundError without the file."""
        with np.load(file, allow_pickle=False) as arrays:
            weights = {
                name.removeprefix("weights."): arrays[name] for name in arrays.files if name.startswith("weights.")
            }
            numbers = (arrays[name] for name in ("plans", "target", "right"))
            return cls(json.loads(str(arrays["settings"])), weights, *numbers)

    def save(self, file: Path = FILE) -> None:
        """Written to a temporary name and renamed."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ("plans", "target", "right")}
        arrays |= {f"weights.{name}": value for name, value in self.weights.items()}
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, settings=np.array(json.dumps(dict(self.settings))), **arrays)

    def network(self) -> nn.Module:
        """The unpruned network, float32, in eval mode."""
        channels, classes = self.settings["channels"], self.settings["classes"]
        network = create(self.settings["network"], classes, channels)
        state = {
            name: torch.from_numpy(value.astype(np.float32) if value.dtype == np.float16 else value.copy())
            for name, value in self.weights.items()
        }
        network.load_state_dict(state)
        return network.eval()

    def config(self, given: Mapping[str, Any], cache: object = None) -> EnvConfig:
        """The table's settings with those that are `given`, checked.

        Raises ValueError that names the setting which the table does not answer for.
        """
        if cache is not None:
            raise ValueError(
                f"cache={str(cache)!r} has no place beside evaluator 'table', which holds all answers; leave it out"
            )
        config = EnvConfig(**{**{name: self.settings[name] for name in FIXED}, **given})
        wanted = asdict(config)
        for name in FIXED:
            if wanted[name] != self.settings[name]:
                raise ValueError(
                    f"{name}={wanted[name]!r} is not what was tabulated: evaluator 'table' answers for "
                    f"{name}={self.settings[name]!r}; leave it out, or take evaluator 'local'"
                )
        if config.target_macs not in self.settings["targets"]:
            raise ValueError(
                f"target_macs={config.target_macs} is not tabulated; evaluator 'table' knows the plans of "
                f"{', '.join(map(str, self.settings['targets']))}"
            )
        if config.measure_at != 1:
            raise ValueError(
                f"measure_at={config.measure_at} asks for plans that are not tabulated; leave it out, or take "
                "evaluator 'local'"
            )
        for name in ("every_round", "finetune_batches", "round_finetune_batches", "racing"):
            if wanted[name]:
                raise ValueError(
                    f"{name}={wanted[name]!r} asks for more than finished plans of the original weights, and "
                    "evaluator 'table' knows no others; leave it out, or take evaluator 'local'"
                )
        return config

    def pretrained(self, network: str, data: DataSplits, weights: object = None, **_: object) -> nn.Module:
        """The unpruned network, if it is the one that is asked for; in place of `networks.pretrained`.

        Raises ValueError unless network and images are those of the table, and for weights of one's own.
        """
        known = self.settings
        if (network, images_fingerprint(data)) != (known["network"], known["fingerprint"]):
            raise ValueError(
                f"network {network!r} on data {data.name!r} is not tabulated: evaluator 'table' answers for "
                f"{known['network']!r} on {known['data']!r} as scikit-learn ships it; take evaluator 'local'"
            )
        if weights is not None:
            raise ValueError(
                f"weights={str(weights)!r} has no place beside evaluator 'table', which holds the network; leave it out"
            )
        return self.network()


class TabulatedEvaluator:
    """Stands where an `Evaluator` stands and looks up the accuracies of one target's plans.

    What a table cannot know is left to the evaluator that it stands for: statistics of a network that is wanted as a
    module, and the accuracy of one with weights of its own.
    """

    def __init__(self, table: Table, target_macs: float | None, measuring: Evaluator | TabulatedEvaluator) -> None:
        self._measuring, self._target = measuring, target_macs
        images, targets = table.settings["images"], table.settings["targets"]

        def accuracies(target: int) -> dict[Plan, float]:
            mine = table.target == target
            plans = map(tuple, table.plans[mine].tolist())
            return dict(zip(plans, (table.right[mine] / images).tolist(), strict=True))

        self.accuracies: Mapping[Plan, float] = accuracies(targets.index(target_macs))
        """Of every plan that meets the target."""
        self._known = accuracies(len(targets)) | self.accuracies
        self.original_accuracy: float = table.settings["original_right"] / images
        self.optimum = max(self.accuracies.values())
        """The best that any algorithm can find."""
        self._round_to = table.settings["round_to"]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while a copy is being unpickled
            raise AttributeError(name)
        return getattr(self._measuring, name)

    def submit(self, plan: Plan, race: Race | None = None) -> None:
        """Nothing to begin with."""

    def accuracy(self, plan: Plan, race: Race | None = None) -> float:
        """The tabulated accuracy. Raises ValueError for a plan that is not in the table."""
        try:
            return self._known[tuple(plan)]
        except KeyError:
            raise ValueError(
                f"plan {tuple(plan)} is not tabulated: for target_macs={self._target} evaluator 'table' knows the "
                f"plans whose counts are multiples of {self._round_to} and whose MACs lie at most one point below, and "
                "those that cut a single group"
            ) from None


def images_fingerprint(data: DataSplits) -> str:
    """A fingerprint of the images and labels that answers depend on; the same on every machine."""
    found = hashlib.blake2b(digest_size=16)
    for split in (data.calibration, data.reward):
        found.update(split.images.contiguous().numpy().data)
        found.update(split.labels.contiguous().numpy().data)
    return found.hexdigest()
