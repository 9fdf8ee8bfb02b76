"""Problems with names and versions: games in which everything that a result depends on is pinned.

A name stands for the same game for ever. Any change after which equal plans have other accuracies, costs, observations,
masks or rewards needs a new version (`-v2`), a new row in `PROBLEMS`; the row of a version that the code can no longer
make is deleted.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from ..common.expect import expect, expect_fields
from ..common.fingerprints import weights_fingerprint
from ..data import Augmentation, DataError, DataSplits, load
from ..evaluation.resources import Resources
from ..networks.registry import create
from ..training.pretrained import check_names, load_weights
from .config import EnvConfig
from .env import FilterPruneEnv
from .tabulated import images_fingerprint, make_tabulated_env
from .targets import Targets
from .validation import check_rules

SPLITS = ("train", "calibration", "reward", "test")
CIFAR10: dict[str, Any] = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "augmentation": Augmentation(pad=4, flip=True),
}
"""Options of `load` for CIFAR-10."""
CIFAR10_IMAGES = "578e5dab6fab31876f575e9b4f179056"
"""`images_fingerprint` of all splits of CIFAR-10."""


@dataclass(frozen=True)
class NamedProblem:
    """What a name stands for."""

    config: EnvConfig
    """Budgets, rules and evaluation. Every field is written out below, so that defaults can change."""
    network: str = "small_cnn"
    """Registered name."""
    weights: str | None = None
    """`weights_fingerprint` of the trained network; None for the tabulated problem, which comes with the package."""
    weights_file: str = ""
    """Where the weights are published."""

    def at(self, target_macs: Targets) -> NamedProblem:
        """Return the same problem with another budget, or with several."""
        return replace(self, config=replace(self.config, target_macs=target_macs))


_GAME = EnvConfig(
    importance="l1",
    calibration_images=500,
    prove=True,
    problem_seed=0,
    reward_images=1000,
    finetune_batches=0,
    precision="bf16",
    rounds=3,
    max_cycles=None,
    rates=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    target_macs=0.5,
    target_params=None,
    target_latency=None,
    latency_table=None,
    reward="budget",
    every_round=False,
    exclude=(),
    only=(),
    linear=False,
    min_filters=2,
    max_rate=1.0,
    round_to=1,
    round_finetune_batches=0,
)
_PUBLIC = "of https://github.com/akamaster/pytorch_resnet_cifar10"
_DIGITS = NamedProblem(replace(_GAME, round_to=4))
_RESNET20 = NamedProblem(_GAME, "resnet20", "b23b723c9af45b9f76ea8322998078e5", f"resnet20-12fca82f.th {_PUBLIC}")
_RESNET56 = NamedProblem(_GAME, "resnet56", "0f42272bbe3b195dacf103804c39f32b", f"resnet56-4bfd9763.th {_PUBLIC}")
_FRONT = (0.3, 0.4, 0.5, 0.6, 0.7)

PROBLEMS = {
    "resnet20-cifar10-0.3-v1": _RESNET20.at(0.3),
    "resnet20-cifar10-0.5-v1": _RESNET20.at(0.5),
    "resnet20-cifar10-0.7-v1": _RESNET20.at(0.7),
    "resnet20-cifar10-front-v1": _RESNET20.at(_FRONT),
    "resnet56-cifar10-0.3-v1": _RESNET56.at(0.3),
    "resnet56-cifar10-0.5-v1": _RESNET56.at(0.5),
    "resnet56-cifar10-0.7-v1": _RESNET56.at(0.7),
    "resnet56-cifar10-front-v1": _RESNET56.at(_FRONT),
    "small_cnn-digits-0.2-v1": _DIGITS.at(0.2),
    "small_cnn-digits-0.3-v1": _DIGITS.at(0.3),
    "small_cnn-digits-0.5-v1": _DIGITS.at(0.5),
    "small_cnn-digits-front-v1": _DIGITS.at((0.2, 0.3, 0.5)),
}
"""Name -> problem. A name is network, data, budget and version; `front` stands for several budgets."""


def list_problems(pattern: str = "*") -> list[str]:
    """Return the names of the problems that match a pattern with wildcards, in alphabetical order.

    Example:
        >>> list_problems("resnet20-*-front-*")
        ['resnet20-cifar10-front-v1']
    """
    return sorted(name for name in PROBLEMS if fnmatchcase(name, pattern))


def make_problem(
    name: str,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    *,
    render_mode: str | None = None,
    **resources: Any,
) -> FilterPruneEnv:
    """Make the environment of a named problem, to compare algorithms on.

    The name pins network, weights, images, splits, budgets, rules and evaluation. Only the hardware is free.
    `env.problem` is the `PruningProblem` inside.

    Args:
        name: A name in `list_problems()`.
        weights: File with the published weights of a ResNet; leave it out for small_cnn.
        data: cifar10, or CIFAR-10 as an image folder, for a ResNet; leave it out for small_cnn.
        render_mode: ansi, rgb_array or None.
        **resources: Fields of `Resources` (device, backend, workers, cache) for a ResNet. Accuracies of small_cnn are
            looked up.

    Returns:
        The environment, a PettingZoo `ParallelEnv`.

    Raises:
        TypeError: An argument is unknown or has another type.
        ValueError: No problem has this name, `weights` or `data` is missing or not that of the problem, or a setting
            is pinned.
        FileNotFoundError: The weights file does not exist.

    Example:
        >>> env = make_problem("small_cnn-digits-0.5-v1")
        >>> env = make_problem("resnet20-cifar10-0.5-v1", "resnet20-12fca82f.th", "cifar10", device="cuda")
    """
    problem = _named(name)
    config = problem.config
    for setting in fields(EnvConfig):
        if setting.name in resources:
            raise ValueError(
                f"{setting.name}={resources[setting.name]!r} cannot be set: problem {name!r} pins "
                f"{setting.name}={getattr(config, setting.name)!r}; leave it out, or use make_env for another game"
            )
    expect_fields(resources, "make_problem", Resources)
    if problem.weights is None:
        given = {"weights": weights, "data": data} | resources
        if unused := [argument for argument, value in given.items() if value is not None]:
            raise ValueError(
                f"problem {name!r} has its own weights, data and accuracies; leave out {', '.join(unused)}"
            )
        return make_tabulated_env(render_mode=render_mode, **asdict(config))
    if weights is None or data is None:
        missing = "weights" if weights is None else "data"
        raise ValueError(
            f"problem {name!r} needs {missing}: give weights=FILE, {problem.weights_file}, and data='cifar10' or an "
            "image folder of CIFAR-10"
        )
    expect(data, (str, os.PathLike), "data must be 'cifar10' or a folder", "splits of your own work with make_env")
    hardware = Resources(**resources)
    check_rules(config, None, render_mode)
    model = _network(name, problem, weights)  # before the data, which take longer to load
    return FilterPruneEnv.from_model(model, _cifar10(name, data), config, render_mode=render_mode, resources=hardware)


def _named(name: str) -> NamedProblem:
    expect(name, str, "name must be the name of a problem", "list_problems() returns the names")
    if name not in PROBLEMS:
        close = get_close_matches(name, PROBLEMS, 1)
        remedy = f"did you mean {close[0]!r}? list_problems() returns" if close else "list_problems() returns"
        raise ValueError(f"problem {name!r} is unknown; {remedy} all names")
    return PROBLEMS[name]


def _network(name: str, problem: NamedProblem, weights: str | Path) -> nn.Module:
    """Return the network with the given weights, which must be those of the problem."""
    file = check_names(problem.network, weights)
    assert file is not None
    model = create(problem.network).eval()
    load_weights(model, file)
    if (found := weights_fingerprint(model)) != problem.weights:
        raise ValueError(
            f"weights {file} (fingerprint {found}) are not those of problem {name!r} ({problem.weights}); give "
            f"{problem.weights_file}"
        )
    return model


def _cifar10(name: str, source: str | Path) -> DataSplits:
    """Return CIFAR-10, whose images and splits must be those of the problem."""
    data = load(source, **CIFAR10)
    if (found := images_fingerprint(data, SPLITS)) != CIFAR10_IMAGES:
        raise DataError(
            f"data {str(source)!r} (fingerprint {found}) are not the images of problem {name!r} ({CIFAR10_IMAGES}); "
            "give 'cifar10', or a folder with all images of CIFAR-10 whose file names sort in their original order"
        )
    return data
