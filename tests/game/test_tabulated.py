"""The tabulated problem: its accuracies are right, nothing is evaluated, and what it does not hold is refused."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from episodes import episode_return, equal, play

from prune_env import make_tabulated_env
from prune_env.data import DataError, DataSplits, TensorSplit
from prune_env.evaluation.live import LiveEvaluator
from prune_env.game.budget import Budget
from prune_env.game.tabulated import FILE, Table, TabulatedEvaluator, images_fingerprint


@pytest.mark.parametrize("target", [0.5, 0.3, 0.2])
@pytest.mark.parametrize(
    "settings", [{}, {"rounds": 1, "rates": (0.0, 0.25, 0.5, 0.75)}, {"rounds": 5, "min_filters": 8}]
)
def test_every_finished_plan_is_in_the_table(target: float, settings: dict[str, Any]) -> None:
    env = make_tabulated_env(target_macs=target, **settings)
    assert isinstance(env.evaluator, TabulatedEvaluator)
    returns = [episode_return(play(env, seed)) for seed in range(50)]
    assert len(env.archive) > 25
    best = max(env.archive, key=lambda entry: entry.accuracy)
    assert best.accuracy <= env.evaluator.optimum
    assert max(returns) == pytest.approx(best.accuracy / env.evaluator.original_accuracy - 1)


def test_steps_run_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_tabulated_env()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a network ran")

    monkeypatch.setattr(torch.nn.Module, "__call__", forbidden)
    monkeypatch.setattr(torch, "conv2d", forbidden)
    play(env)
    assert len(env.archive) == 1


def test_the_table_holds_every_plan_of_its_budgets_once() -> None:
    table, env = Table.load(), make_tabulated_env()
    full = np.array(env.problem.full_plan)
    grid = np.stack(np.meshgrid(*[np.arange(4, count + 1, 4) for count in full], indexing="ij"), -1).reshape(-1, 5)
    ratios = env.problem.cost.macs(grid) / env.problem.cost.macs(full)
    for number, target in enumerate(table.settings["targets"]):
        wanted = grid[(ratios <= target) & (ratios >= target - Budget.tolerance)]
        held = table.plans[table.target == number]
        assert sorted(map(tuple, held.tolist())) == sorted(map(tuple, wanted.tolist()))
        assert sorted(table.accuracies(number)) == sorted(map(tuple, wanted.tolist()))
    assert FILE.stat().st_size < 1_000_000


def test_the_table_holds_every_plan_that_cuts_a_single_group() -> None:
    env = make_tabulated_env()
    full = env.problem.full_plan
    for group, count in enumerate(full):
        for kept in range(4, count + 1, 4):
            assert env.evaluator.accuracy((*full[:group], kept, *full[group + 1 :])) > 0


def test_accuracies_are_those_of_a_measurement() -> None:
    """Up to the arithmetic of processors: the file was made on another one."""
    env = make_tabulated_env(target_macs=0.3)
    live = LiveEvaluator(env.problem, env.config)
    plans = list(env.evaluator.accuracies)
    chosen = np.random.default_rng(1).choice(len(plans), 20, replace=False)
    differences = [
        abs(env.evaluator.accuracy(plans[number]) - live.accuracy(plans[number])) for number in chosen.tolist()
    ]
    assert np.mean(differences) < 0.01
    assert max(differences) < 0.04
    assert abs(env.evaluator.original_accuracy - live.original_accuracy) < 0.01


def test_networks_and_their_accuracies_can_be_measured() -> None:
    env = make_tabulated_env()
    play(env)
    accuracy = env.evaluator.accuracy_of(env.pruned_model())
    assert abs(accuracy - env.evaluator.accuracy(env.plan)) < 0.04


def test_copies_play_the_same_game() -> None:
    env = make_tabulated_env()
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert equal(play(other, 3), play(env, 3))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"round_to": 8}, "round_to=8.*round_to=4"),
        ({"importance": "l2"}, "importance='l2'.*importance='l1'"),
        ({"reward_images": 100}, "reward_images=100"),
        ({"calibration_images": 100}, "calibration_images=100"),
        ({"problem_seed": 1}, "problem_seed=1"),
        ({"target_macs": 0.4}, "target_macs=0.4.*0.5, 0.3, 0.2"),
        ({"target_macs": None, "reward": "amc"}, "target_macs=None.*0.5, 0.3, 0.2"),
        ({"every_round": True}, "every_round=True"),
        ({"finetune_batches": 3}, "finetune_batches=3"),
        ({"round_finetune_batches": 3}, "round_finetune_batches=3"),
        ({"render_mode": "human"}, "render_mode 'human'"),
    ],
)
def test_settings_that_were_not_tabulated_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make_tabulated_env(**settings)


@pytest.mark.parametrize("setting", ["weights", "cache", "backend", "device", "target_mac"])
def test_settings_of_other_environments_are_unknown(setting: str) -> None:
    with pytest.raises(TypeError, match=setting):
        make_tabulated_env(**{setting: "cpu"})


def test_a_plan_that_was_not_tabulated_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(32, 32, 64, 60, 124\)"):
        make_tabulated_env().evaluator.accuracy((32, 32, 64, 60, 124))


def test_other_images_than_those_of_the_table_are_refused(digits: DataSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    images = digits.reward.images.clone()
    images[0] = 0
    other = dataclasses.replace(digits, reward=TensorSplit(images, digits.reward.labels))
    assert images_fingerprint(other) != images_fingerprint(digits)
    monkeypatch.setattr("prune_env.game.tabulated.load", lambda name: other)
    with pytest.raises(DataError, match="'digits'"):
        make_tabulated_env()


def test_the_file_survives_writing_and_reading(tmp_path: Path) -> None:
    table = Table.load()
    table.save(tmp_path / "again.npz")
    again = Table.load(tmp_path / "again.npz")
    assert again.settings == table.settings
    for name in ("plans", "target", "correct"):
        assert np.array_equal(getattr(again, name), getattr(table, name))
    for name, tensor in again.network().state_dict().items():
        assert torch.equal(tensor, table.network().state_dict()[name])
