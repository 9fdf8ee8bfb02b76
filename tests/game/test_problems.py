"""Named problems: their games never change unnoticed, and nothing that they pin can be replaced."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from episodes import play

from prune_env import EnvConfig, FilterPruneEnv, PruningProblem, list_problems, make_problem
from prune_env.common.fingerprints import weights_fingerprint
from prune_env.data import DataError, from_tensors
from prune_env.game.budget import Budget
from prune_env.game.problems import PROBLEMS
from prune_env.networks import create
from prune_env.pruning.limits import Limits

RESNET20 = "resnet20-cifar10-0.5-v1"
DIGITS = {
    "small_cnn-digits-0.2-v1": ("b727d76f6e8cf8858c961a036370c50a", "df7288f6124ebd55", 0.415025),
    "small_cnn-digits-0.3-v1": ("1e856efe1d80bc24cda4dc1418db2686", "7762bf8fc2440874", 0.422433),
    "small_cnn-digits-0.5-v1": ("b3accf078605c993b546ee3b81de0f05", "76a88367716a6f23", 0.436470),
    "small_cnn-digits-front-v1": ("21f41a9522a9980b11f771f8f168dd1b", "bd358a7411ededa4", 0.424701),
}
"""Recorded fingerprint, digest of ten episodes, and mean observation. If one changes, the problem needs a new version.
Only if `EnvConfig` has a new setting without effect on this game, its new fingerprint is recorded instead."""
CIFAR = {
    "resnet20-cifar10-front-v1": ("39f7aa6f711401a18331ba6ce4c3f1c7", "resnet20-12fca82f.th", {0.3: 0.171, 0.7: 0.783}),
    "resnet56-cifar10-0.5-v1": ("b00a0eb8b926729ae1794e6dfd4ac6da", "resnet56-4bfd9763.th", {0.5: 0.516}),
}
"""Recorded fingerprint, file of the weights, and accuracy of the uniform plan by budget."""


def recorded(env: FilterPruneEnv) -> tuple[str, str, float]:
    """Return what `DIGITS` records of an environment. Observations are averaged: processors round them differently."""
    digest, observations = hashlib.blake2b(digest_size=8), []
    for seed in range(10):
        for number, result in enumerate(play(env, seed)):
            for info in result[-1].values():
                digest.update(bytes(info["action_mask"].tolist()))
            if number:
                digest.update(repr(result[1]["conv_0"]).encode())
            observations += [entries.mean() for entries in result[0].values()]
        digest.update(repr(env.plan).encode())
    return env.fingerprint, digest.hexdigest(), float(np.mean(observations))


@pytest.mark.parametrize("name", DIGITS)
def test_the_game_of_a_problem_never_changes(name: str) -> None:
    fingerprint, episodes, observation = recorded(make_problem(name))
    assert fingerprint == DIGITS[name][0], "weights, images, ranking or settings have changed"
    assert episodes == DIGITS[name][1], "plans, masks or rewards have changed"
    assert observation == pytest.approx(DIGITS[name][2], abs=1e-4), "observations have changed"


def test_every_problem_on_digits_is_recorded() -> None:
    assert sorted(DIGITS) == list_problems("*-digits-*")


@pytest.mark.parametrize(
    ("network", "macs", "uniform"),
    [
        ("resnet20", 40_551_040, [*[12] * 2, *[11] * 2, 23, *[22] * 3, *[44] * 4]),
        ("resnet56", 125_485_696, [*[12] * 7, *[11] * 3, 23, *[22] * 9, *[44] * 10]),
    ],
)
def test_groups_costs_and_budgets_of_the_resnets_never_change(network: str, macs: int, uniform: list[int]) -> None:
    config = PROBLEMS[f"{network}-cifar10-0.5-v1"].config
    images, labels = torch.arange(40 * 3 * 32 * 32).view(40, 3, 32, 32) % 251 / 251, torch.arange(40) % 10
    data = from_tensors(images, labels, 1 - images, labels)
    problem = PruningProblem.create(create(network), data, replace(config, prove=False))
    assert problem.cost.macs(np.array(problem.full_plan)) == macs
    limits = Limits(min_filters=2)
    assert Budget(problem.cost.macs, problem.full_plan, config.rates, 0.5, limits).uniform() == tuple(uniform)


@pytest.mark.cifar("PRUNE_ENV_WEIGHTS")
@pytest.mark.slow
@pytest.mark.parametrize("name", CIFAR)
def test_the_game_of_a_public_resnet_never_changes(name: str) -> None:
    fingerprint, file, accuracies = CIFAR[name]
    env = make_problem(name, Path(os.environ["PRUNE_ENV_WEIGHTS"]) / file, os.environ["PRUNE_ENV_DATA"])
    assert env.fingerprint == fingerprint
    for target, accuracy in accuracies.items():
        assert env.evaluator.accuracy(env.budgets.of(target).uniform()) == pytest.approx(accuracy, abs=0.01)


def test_names_are_listed_in_order_and_state_the_budget() -> None:
    assert list_problems() == sorted(PROBLEMS)
    assert list_problems("small_cnn*-front-*") == ["small_cnn-digits-front-v1"]
    for name, problem in PROBLEMS.items():
        network, _, budget, _ = name.split("-")
        assert problem.network == network
        assert len(problem.config.targets) > 1 if budget == "front" else problem.config.targets == (float(budget),)


def test_all_problems_have_the_same_rates_so_that_one_suite_can_hold_them() -> None:
    assert len({problem.config.rates for problem in PROBLEMS.values()}) == 1


@pytest.mark.parametrize("name", ["small_cnn-digits-0.3-v1", RESNET20])
@pytest.mark.parametrize("setting", [field.name for field in fields(EnvConfig)])
def test_no_setting_can_be_replaced(name: str, setting: str) -> None:
    value = getattr(PROBLEMS[name].config, setting)
    with pytest.raises(ValueError, match=rf"{setting}.*{name}"):
        make_problem(name, **{setting: value})


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"name": "resnet20-cifar10-0.5-v0"}, ValueError, "'resnet20-cifar10-0.5-v0'.*'resnet20-cifar10-0.5-v1'"),
        ({"name": "xyz"}, ValueError, "'xyz'"),
        ({"name": 3}, TypeError, "name.*int"),
        ({"name": "small_cnn-digits-0.3-v1", "weights": "w.pt"}, ValueError, "small_cnn-digits-0.3-v1.*weights"),
        ({"name": "small_cnn-digits-0.3-v1", "data": "digits"}, ValueError, "small_cnn-digits-0.3-v1.*data"),
        ({"name": "small_cnn-digits-0.3-v1", "device": "cuda"}, ValueError, "small_cnn-digits-0.3-v1.*device"),
        ({"name": "small_cnn-digits-0.3-v1", "render_mode": "human"}, ValueError, "render_mode 'human'"),
        ({"name": RESNET20, "data": "cifar10"}, ValueError, f"{RESNET20}.*weights"),
        ({"name": RESNET20, "weights": "w.pt"}, ValueError, f"{RESNET20}.*data"),
        ({"name": RESNET20, "weights": "none.pt", "data": "cifar10"}, FileNotFoundError, "none.pt"),
        ({"name": RESNET20, "weights": "w.pt", "data": torch.zeros(1)}, TypeError, "data.*Tensor"),
        ({"name": RESNET20, "weights": "w.pt", "data": "cifar10", "devise": "cpu"}, TypeError, "'devise'.*'device'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        make_problem(**arguments)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save(create("resnet20").state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=rf"other\.pt.*{RESNET20}.*resnet20-12fca82f\.th"):
        make_problem(RESNET20, tmp_path / "other.pt", "cifar10")


def test_other_images_are_refused(
    image_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = create("resnet20")
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setitem(PROBLEMS, RESNET20, replace(PROBLEMS[RESNET20], weights=weights_fingerprint(network)))
    with pytest.raises(DataError, match=rf"images.*{RESNET20}"):
        make_problem(RESNET20, tmp_path / "weights.pt", image_folder(size=32))
