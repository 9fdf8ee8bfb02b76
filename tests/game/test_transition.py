"""Where rounds lead, computed by hand on a tiny network, and that equal rounds are computed once."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny_problem

from prune_env.data import DataSplits
from prune_env.game.budget import Budget
from prune_env.game.least_change import LeastChange
from prune_env.game.observation import STATIC, Observer, Rounds, dynamic_names
from prune_env.game.transition import RoundState, Transitions
from prune_env.pruning.problem import PruningProblem

RATES = (0.0, 0.5)
MACS, PARAMS = 3476, 90
NAMES = (*STATIC, *dynamic_names("macs"))


@pytest.fixture(scope="module")
def problem(digits: DataSplits) -> PruningProblem:
    return tiny_problem(digits)


def transitions(problem: PruningProblem, rounds: int = 2) -> Transitions:
    least_change = LeastChange(Budget(problem.cost.macs, problem.full_plan, RATES, None), problem.output_changes)
    return Transitions(problem.cost, problem.full_plan, Observer(problem, budget(problem, None), least_change), rounds)


def budget(problem: PruningProblem, target: float | None) -> Budget:
    return Budget(problem.cost.macs, problem.full_plan, RATES, target)


def check(state: RoundState, plan: tuple[int, ...], rates: tuple[float, ...], costs: tuple[int, int]) -> None:
    assert state.plan == plan
    assert state.last_rates == rates
    assert (state.macs_ratio, state.params_ratio) == (costs[0] / MACS, costs[1] / PARAMS)
    shown = {"macs_ratio": state.macs_ratio, "rounds_left": state.rounds.left / state.rounds.per_episode}
    for name, value in shown.items():
        assert state.observations[0, NAMES.index(name)] == np.float32(value)


def test_an_episode_of_two_rounds(problem: PruningProblem) -> None:
    """At most floor(0.3 * 3476) = 1042 MACs may stay."""
    play = transitions(problem)
    start = play.start(budget(problem, 0.3))
    check(start, (4, 2), (0.0, 0.0), (3476, 90))
    assert (start.number, start.rounds) == (0, Rounds(2, 2))
    assert start.masks.tolist() == [[1, 1], [1, 1]]

    first = play.after(start, (1, 0))
    check(first, (2, 2), (0.5, 0.0), (1152 + 256 + 64 + 20, 18 + 4 + 4 + 30))
    assert (first.number, first.rounds) == (1, Rounds(1, 2))
    # One filter of the first group alone would leave 576 + 64 + 32 + 20 = 692 MACs, which is below the target.
    assert first.masks.tolist() == [[1, 0], [1, 1]]

    last = play.after(first, (0, 0))  # removes nothing, so the projection brings the plan to the budget
    check(last, (1, 2), (0.5, 0.0), (692, 9 + 1 + 2 + 30))
    assert (last.number, last.rounds) == (2, Rounds(0, 2))


def test_an_illegal_action_counts_as_the_nearest_legal_one_below(problem: PruningProblem) -> None:
    play = transitions(problem, rounds=3)
    state = play.after(play.start(budget(problem, 0.3)), (1, 0))
    assert play.after(state, (1, 0)).plan == play.after(state, (0, 0)).plan == (2, 2)
    assert play.after(state, (1, 1)).plan == (2, 1)


def test_equal_rounds_are_computed_once_and_others_apart(problem: PruningProblem) -> None:
    play = transitions(problem)
    states = [play.start(budget(problem, target)) for target in (0.3, 0.9, None)]
    for state in states:
        assert play.start(state.budget) is state
        assert play.after(state, (1, 1)) is play.after(state, np.array([1, 1]))
        assert play.after(state, (1, 1)).budget is state.budget
    # The target 0.9 makes the first group's rate illegal. Without a budget nothing is projected.
    assert [play.after(state, (1, 1)).plan for state in states] == [(2, 1), (4, 1), (2, 1)]


def test_a_given_plan_is_entered_as_it_stands(problem: PruningProblem) -> None:
    play = transitions(problem)
    state = play.to(play.start(budget(problem, 0.3)), (1, 1))
    check(state, (1, 1), (0.75, 0.5), (576 + 64 + 16 + 10, 9 + 1 + 1 + 20))
    assert state.number == 1


def test_cost_ratios(problem: PruningProblem) -> None:
    assert transitions(problem).cost_ratios((2, 1)) == ((1152 + 256 + 32 + 10) / MACS, (18 + 4 + 2 + 20) / PARAMS)
