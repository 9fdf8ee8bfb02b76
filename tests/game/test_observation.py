"""Every entry of observations and state, computed by hand on a tiny network."""

from __future__ import annotations

from dataclasses import replace
from math import log2, log10

import numpy as np
import pytest
import torch
from tiny import tiny_problem

from prune_env.data import DataSplits
from prune_env.game.budget import Budget
from prune_env.game.least_change import LeastChange
from prune_env.game.observation import Observer, Rounds
from prune_env.pruning.problem import PruningProblem

RATES = (0.0, 0.5)
PLAN, LAST_RATES, ROUNDS = (3, 2), (0.25, 0.0), Rounds(1, 2)  # one filter of the first group is gone
CHANGES = ([0, 0.001, 0.01, 0.1, 1], [0, 0.02, 20])  # without the k least important filters
MACS, MACS_NOW = 2304 + 1024 + 128 + 20, 1728 + 576 + 96 + 20
PARAMS, PARAMS_NOW = 36 + 16 + 8 + 30, 27 + 9 + 6 + 30
ENTRIES = {  # name -> the value of each agent
    "depth": (0, 1),
    "kernel": (log2(3) / 4, 0),
    "stride": (0, 1 / 3),
    "channels_in": (0, 2 / 12),
    "channels_out": (2 / 12, 1 / 12),
    "feature_map": (3 / 8, 2 / 8),
    "macs_share": ((2304 + 1024) / MACS, 128 / MACS),
    "params_share": ((36 + 16) / PARAMS, 8 / PARAMS),
    "members": (1 / 2, 0),
    "grouped": (0, 0),
    "agents": (1 / 10, 1 / 10),
    "kept_ratio": (3 / 4, 1),
    "macs_share_now": ((1728 + 576) / MACS_NOW, 96 / MACS_NOW),
    # MACs are 576 k + 64 k k + 16 k j + 10 j.
    "macs_slope": ((576 * 3 + 2 * 64 * 9 + 16 * 6) / (2 * MACS_NOW), (16 * 6 + 10 * 2) / (2 * MACS_NOW)),
    "macs_ratio": (MACS_NOW / MACS, MACS_NOW / MACS),
    "target_macs": (0.5, 0.5),
    "macs_left": (0.5 * MACS / MACS_NOW, 0.5 * MACS / MACS_NOW),
    "budget_distance": ((MACS_NOW / MACS - 0.5) / 0.5, (MACS_NOW / MACS - 0.5) / 0.5),
    "rounds_left": (0.5, 0.5),
    "last_rate": (0.25, 0),
    # The first group's filters change the outputs less and save more MACs; without two of them the target is met.
    "proposed_rate": (1 / 3, 0),
    # The importances that remain are 1, 3/4 and 2/4 in the first group and 1 and 1/3 in the second.
    "importance_q0": (2 / 4, 1 / 3),
    "importance_q25": (2 / 4, 1 / 3),
    "importance_q50": (3 / 4, 1),
    "importance_q75": (1, 1),
    "importance_q100": (1, 1),
    "importance_lost_0.5": ((2 / 4) / (1 + 3 / 4 + 2 / 4), (1 / 3) / (1 + 1 / 3)),  # one filter of 3, one of 2
    "output_change_0.5": ((log10(0.009) + 4) / 5, (log10(0.02) + 4) / 5),
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


def observer_of(problem: PruningProblem) -> Observer:
    changes = [np.array(curve) for curve in CHANGES]
    return Observer(problem, budget(problem, None), LeastChange(budget(problem, None), changes))


def test_every_entry_has_its_value(problem: PruningProblem) -> None:
    observer = observer_of(problem)
    found = observer.observe(budget(problem), PLAN, LAST_RATES, ROUNDS)
    assert observer.names == tuple(ENTRIES)
    assert found.dtype == np.float32
    for name, column in zip(observer.names, found.T, strict=True):
        assert column == pytest.approx(ENTRIES[name], rel=1e-6), name


def test_the_state_is_all_observations_and_the_totals(problem: PruningProblem) -> None:
    observer = observer_of(problem)
    found = dict(zip(observer.state_names, observer.state(budget(problem), PLAN, LAST_RATES, ROUNDS), strict=True))
    assert len(found) == 2 * len(ENTRIES) + len(TOTALS)
    for name, values in ENTRIES.items():
        assert (found[f"conv_0.{name}"], found[f"conv_1.{name}"]) == pytest.approx(values, rel=1e-6), name
    for name, value in TOTALS.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_without_a_budget_the_target_is_the_whole_network(problem: PruningProblem) -> None:
    observer = observer_of(problem)
    found = observer.observe(budget(problem, None), PLAN, LAST_RATES, ROUNDS)
    assert found[0, observer.names.index("target_macs")] == 1
    assert not found[:, observer.names.index("proposed_rate")].any()
    assert found[0, observer.names.index("budget_distance")] == 0


def test_below_the_budget_the_distance_is_zero(problem: PruningProblem) -> None:
    observer = observer_of(problem)
    found = observer.observe(budget(problem), (2, 2), (0.5, 0.0), ROUNDS)
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
    observer = observer_of(changed)
    found = dict(
        zip(observer.names, observer.observe(budget(problem), (4, 2), (0.0, 0.0), Rounds(2, 2))[0], strict=True)
    )
    assert found["importance_q0"] == least
    assert found["importance_q100"] == 1
    assert found["importance_lost_0.5"] == pytest.approx(lost)


def test_the_proposed_rates_lead_to_the_least_change_plan(problem: PruningProblem) -> None:
    observer = observer_of(problem)
    column = observer.names.index("proposed_rate")
    first = observer.observe(budget(problem), (4, 2), (0.0, 0.0), Rounds(2, 2))[:, column]
    assert (4 * (1 - first[0]) ** 2, first[1]) == pytest.approx((2, 0))
    after = observer.observe(budget(problem), (1, 2), (0.0, 0.0), Rounds(1, 2))[:, column]
    assert not after.any()  # filters do not come back
    assert not observer.observe(budget(problem), PLAN, LAST_RATES, Rounds(0, 2))[:, column].any()


@pytest.mark.parametrize(("change", "shown"), [(0.0, 0), (1e-9, 0), (1.0, 4 / 5), (1e9, 1)])
def test_changes_are_shown_on_a_scale_from_a_ten_thousandth_to_ten(
    problem: PruningProblem, change: float, shown: float
) -> None:
    curves = [np.array([0, change / 2, change, 2 * change, 4 * change]), np.array([0, 1.0, 2.0])]
    observer = Observer(problem, budget(problem, None), LeastChange(budget(problem, None), curves))
    found = observer.observe(budget(problem), (4, 2), (0.0, 0.0), Rounds(2, 2))[0]
    assert found[observer.names.index("output_change_0.5")] == pytest.approx(shown)
