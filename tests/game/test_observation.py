"""Every entry of observations and state, computed by hand on a tiny network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_problem

from prune_env.data import DataSplits
from prune_env.game.budget import Budget
from prune_env.game.observation import Observer
from prune_env.pruning.problem import PruningProblem

RATES = (0.0, 0.5)
PLAN, LAST_RATES, ROUNDS_LEFT = (3, 2), (0.25, 0.0), 0.5  # one filter of the first group is gone
MACS, MACS_NOW = 2304 + 1024 + 128 + 20, 1728 + 576 + 96 + 20
PARAMS, PARAMS_NOW = 36 + 16 + 8 + 30, 27 + 9 + 6 + 30
ENTRIES = {  # name -> the value of each agent
    "depth": (0, 1),
    "kernel": (1, 1 / 3),
    "stride": (1 / 2, 1),
    "channels_in": (1 / 4, 1),
    "channels_out": (1, 2 / 4),
    "feature_map": (1, 4 / 8),
    "macs_share": ((2304 + 1024) / MACS, 128 / MACS),
    "params_share": ((36 + 16) / PARAMS, 8 / PARAMS),
    "members": (1, 1 / 2),
    "kept_ratio": (3 / 4, 1),
    "macs_share_now": ((1728 + 576) / MACS_NOW, 96 / MACS_NOW),
    "macs_ratio": (MACS_NOW / MACS, MACS_NOW / MACS),
    "target_macs": (0.5, 0.5),
    "budget_distance": ((MACS_NOW / MACS - 0.5) / 0.5, (MACS_NOW / MACS - 0.5) / 0.5),
    "rounds_left": (0.5, 0.5),
    "last_rate": (0.25, 0),
    # The importances that remain are 1, 3/4 and 2/4 in the first group and 1 and 1/3 in the second.
    "importance_q0": (2 / 4, 1 / 3),
    "importance_q25": (2 / 4, 1 / 3),
    "importance_q50": (3 / 4, 1),
    "importance_q75": (1, 1),
    "importance_q100": (1, 1),
    "importance_lost_0.5": ((2 / 4) / (1 + 3 / 4 + 2 / 4), (1 / 3) / (1 + 1 / 3)),  # one filter of 3, one of 2
}
TOTALS = {
    "macs_ratio": MACS_NOW / MACS,
    "params_ratio": PARAMS_NOW / PARAMS,
    "target_macs": 0.5,
    "budget_distance": (MACS_NOW / MACS - 0.5) / 0.5,
    "rounds_left": 0.5,
}


@pytest.fixture(scope="module")
def problem(digits: DataSplits) -> PruningProblem:
    return tiny_problem(digits)


def budget(problem: PruningProblem, target: float | None = 0.5) -> Budget:
    return Budget(problem.cost.macs, problem.full_plan, RATES, target)


def test_every_entry_has_its_value(problem: PruningProblem) -> None:
    observer = Observer(problem, RATES)
    found = observer.observe(budget(problem), PLAN, LAST_RATES, ROUNDS_LEFT)
    assert observer.names == tuple(ENTRIES)
    assert found.dtype == np.float32
    for name, column in zip(observer.names, found.T, strict=True):
        assert column == pytest.approx(ENTRIES[name], rel=1e-6), name


def test_the_state_is_all_observations_and_the_totals(problem: PruningProblem) -> None:
    observer = Observer(problem, RATES)
    found = dict(zip(observer.state_names, observer.state(budget(problem), PLAN, LAST_RATES, ROUNDS_LEFT), strict=True))
    assert len(found) == 2 * len(ENTRIES) + len(TOTALS)
    for name, values in ENTRIES.items():
        assert (found[f"conv_0.{name}"], found[f"conv_1.{name}"]) == pytest.approx(values, rel=1e-6), name
    for name, value in TOTALS.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_without_a_budget_the_target_is_the_whole_network(problem: PruningProblem) -> None:
    observer = Observer(problem, RATES)
    found = observer.observe(budget(problem, None), PLAN, LAST_RATES, ROUNDS_LEFT)
    assert found[0, observer.names.index("target_macs")] == 1
    assert found[0, observer.names.index("budget_distance")] == 0


def test_below_the_budget_the_distance_is_zero(problem: PruningProblem) -> None:
    observer = Observer(problem, RATES)
    found = observer.observe(budget(problem), (2, 2), (0.5, 0.0), ROUNDS_LEFT)
    assert found[0, observer.names.index("budget_distance")] == 0


@pytest.mark.parametrize(
    ("scores", "least", "lost"),
    [
        ((0.0, 0.0, 0.0, 0.0), 1, 1 / 2),  # all are equally important
        ((3.0, 1.0, 0.0, -1.0), 0, (1 + 0) / (4 + 2 + 1 + 0)),  # counted from the lowest score
        ((0.0, 1.0, 3.0, 2.0), 0, (1 + 0) / (3 + 2 + 1 + 0)),  # in any order
    ],
)
def test_unusual_scores(problem: PruningProblem, scores: tuple[float, ...], least: float, lost: float) -> None:
    changed = replace(problem, scores={**problem.scores, "conv_0": torch.tensor(scores)})
    observer = Observer(changed, RATES)
    found = dict(zip(observer.names, observer.observe(budget(problem), (4, 2), (0.0, 0.0), 1.0)[0], strict=True))
    assert found["importance_q0"] == least
    assert found["importance_q100"] == 1
    assert found["importance_lost_0.5"] == pytest.approx(lost)
