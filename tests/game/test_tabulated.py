"""The tabulated problem: right answers, no evaluation, and clear errors where it has none."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prune_env import FilterPruneEnv, make_env
from prune_env.data import DataSplits, Split
from prune_env.game.budget import Budget
from prune_env.game.tabulated import Table, TabulatedEvaluator


def table_env(**settings: Any) -> FilterPruneEnv:
    return make_env("small_cnn", "digits", evaluator="table", **settings)


def play(env: FilterPruneEnv, rng: np.random.Generator) -> float:
    """The return of a random episode."""
    _, infos = env.reset()
    total = 0.0
    while env.agents:
        actions = {agent: int(rng.choice(np.flatnonzero(infos[agent]["action_mask"]))) for agent in env.agents}
        _, rewards, _, _, infos = env.step(actions)
        total += rewards["conv_0"]
    return total


@pytest.mark.parametrize("target", [0.5, 0.3, 0.2])
def test_whatever_is_played_is_in_the_table(target: float) -> None:
    rng = np.random.default_rng(0)
    for settings in ({}, {"rounds": 1, "rates": (0.0, 0.25, 0.5, 0.75)}, {"rounds": 5, "min_filters": 8}):
        env = table_env(target_macs=target, **settings)
        assert isinstance(env.evaluator, TabulatedEvaluator)
        returns = [play(env, rng) for _ in range(50)]
        assert len(env.archive) > 25
        best = max(env.archive, key=lambda entry: entry.accuracy)
        assert best.accuracy <= env.evaluator.optimum
        assert max(returns) == pytest.approx(best.accuracy / env.evaluator.original_accuracy - 1)


def test_steps_run_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    env = table_env()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a network was run")

    monkeypatch.setattr(torch.nn.Module, "__call__", forbidden)
    monkeypatch.setattr(torch, "conv2d", forbidden)
    play(env, np.random.default_rng(0))
    assert len(env.archive) == 1


def test_the_table_holds_every_plan_of_its_budgets_once() -> None:
    table, env = Table.load(), table_env()
    full = np.array(env.problem.full_plan)
    grid = np.stack(np.meshgrid(*[np.arange(4, count + 1, 4) for count in full], indexing="ij"), -1).reshape(-1, 5)
    ratios = env.problem.cost.macs(grid) / env.problem.cost.macs(full)
    for number, target in enumerate(table.settings["targets"]):
        wanted = grid[(ratios <= target) & (ratios >= target - Budget.tolerance)]
        held = table.plans[table.target == number]
        assert sorted(map(tuple, held.tolist())) == sorted(map(tuple, wanted.tolist()))
    for group, count in enumerate(env.problem.full_plan):  # those that cut a single group
        for kept in range(4, count + 1, 4):
            assert (
                env.evaluator.accuracy((*env.problem.full_plan[:group], kept, *env.problem.full_plan[group + 1 :])) > 0
            )
    assert Table.load.__func__.__defaults__[0].stat().st_size < 1_000_000  # type: ignore[attr-defined]


def test_answers_are_those_of_an_evaluation() -> None:
    """Up to the arithmetic of processors: the file was made on another."""
    env = table_env(target_macs=0.3)
    rng = np.random.default_rng(1)
    plans = list(env.evaluator.accuracies)
    measuring = env.evaluator._measuring
    differences = [
        abs(env.evaluator.accuracy(plan) - measuring.accuracy(plan))
        for plan in (plans[number] for number in rng.choice(len(plans), 20, replace=False))
    ]
    assert np.mean(differences) < 0.01
    assert max(differences) < 0.04
    assert abs(env.evaluator.original_accuracy - measuring.original_accuracy) < 0.01


def test_modules_and_copies_work() -> None:
    env = table_env()
    play(env, np.random.default_rng(0))
    network = env.pruned_model()
    accuracy = env.evaluator.accuracy_of(network)
    assert abs(accuracy - env.evaluator.accuracy(env.plan)) < 0.04
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert play(other, np.random.default_rng(3)) == play(env, np.random.default_rng(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"round_to": 8}, "round_to=8 is not what was tabulated.*round_to=4"),
        ({"target_macs": 0.4}, r"target_macs=0.4 is not tabulated.*0.5, 0.3, 0.2"),
        ({"importance": "l2"}, "importance='l2'"),
        ({"reward_images": 100}, "reward_images=100"),
        ({"every_round": True}, "every_round=True asks for more"),
        ({"finetune_batches": 3}, "finetune_batches=3 asks for more"),
        ({"round_finetune_batches": 3}, "round_finetune_batches=3 asks for more"),
        ({"measure_at": 0.5}, "measure_at=0.5 asks for plans that are not tabulated"),
        ({"cache": "file.db"}, "cache='file.db' has no place"),
        ({"weights": "file.pt"}, "weights='file.pt' has no place"),
    ],
)
def test_other_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table_env(**settings)


def test_other_problems_and_plans_are_told(digits: DataSplits) -> None:
    images = digits.reward.images.clone()
    images[0] = 0
    other = dataclasses.replace(digits, name="other", reward=Split(images, digits.reward.labels))
    with pytest.raises(ValueError, match=r"'small_cnn' on data 'other' is not tabulated"):
        make_env("small_cnn", other, evaluator="table")
    env = table_env()
    with pytest.raises(ValueError, match=r"plan \(32, 32, 64, 60, 124\) is not tabulated"):
        env.evaluator.accuracy((32, 32, 64, 60, 124))
    with pytest.raises(ValueError, match="evaluator 'guess' is unknown"):
        make_env("small_cnn", digits, evaluator="guess")  # type: ignore[arg-type]


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = Table.load()
    table.save(tmp_path / "again.npz")
    again = Table.load(tmp_path / "again.npz")
    assert again.settings == table.settings
    assert np.array_equal(again.plans, table.plans)
    assert np.array_equal(again.right, table.right)
    for name, tensor in again.network().state_dict().items():
        assert torch.equal(tensor, table.network().state_dict()[name])
