"""Rewards: the return of an episode, the balance of accuracy and cost, and the registry of reward functions."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
from episodes import EnvMaker, last_info, play
from hypothesis import given
from hypothesis import strategies as st

from prune_env import EnvConfig
from prune_env.game.reward import (
    REWARDS,
    RewardFunction,
    RewardInput,
    RoundReward,
    Tradeoff,
    amc,
    budget,
    register_reward,
)

BUILT_IN = ("budget", "tradeoff", "amc")

fractions = st.floats(0, 1)
# (accuracy, MACs ratio) after every round
episodes = st.lists(st.tuples(fractions, fractions), min_size=1, max_size=6)


def inputs(states: list[tuple[float, float]], original: float = 0.9) -> list[RewardInput]:
    """Return the rounds of an episode that starts with the original network."""
    rounds = list(itertools.pairwise([(original, 1.0), *states]))
    return [
        RewardInput(accuracy_before, accuracy_after, original, macs_before, macs_after, last=number == len(rounds))
        for number, ((accuracy_before, macs_before), (accuracy_after, macs_after)) in enumerate(rounds, 1)
    ]


def end(accuracy: float, macs: float, last: bool = True) -> RewardInput:
    return RewardInput(0.9, accuracy, 0.9, 1.0, macs, last)


def test_budget_by_hand() -> None:
    rewards = [budget(step).reward for step in inputs([(0.72, 0.7), (0.81, 0.5)])]
    assert rewards == pytest.approx([-0.2, 0.1])


@given(episodes, st.floats(0.1, 1))
def test_the_budget_return_is_the_final_accuracy_ratio_minus_one(
    states: list[tuple[float, float]], original: float
) -> None:
    total = sum(budget(step).reward for step in inputs(states, original))
    assert total == pytest.approx(states[-1][0] / original - 1, abs=1e-9)


@given(episodes)
def test_the_budget_return_is_the_same_if_only_the_last_round_is_evaluated(states: list[tuple[float, float]]) -> None:
    unevaluated = [(0.9, macs) for _, macs in states[:-1]] + states[-1:]
    assert sum(budget(step).reward for step in inputs(unevaluated)) == pytest.approx(
        sum(budget(step).reward for step in inputs(states)), abs=1e-9
    )
    assert all(budget(step).reward == 0 for step in inputs(unevaluated)[:-1])


def test_budget_does_not_depend_on_the_macs() -> None:
    assert budget(end(0.8, 0.1)) == budget(end(0.8, 0.9))


def test_tradeoff_by_hand() -> None:
    """A tenth of the accuracy is lost, and half of the MACs are saved."""
    assert Tradeoff(macs_weight=0.5)(end(0.81, 0.5)).reward == pytest.approx(-0.1 + 0.25)


@given(episodes, st.floats(0, 3))
def test_the_tradeoff_return_is_accuracy_ratio_and_saved_macs(states: list[tuple[float, float]], weight: float) -> None:
    total = sum(Tradeoff(weight)(step).reward for step in inputs(states))
    accuracy, macs = states[-1]
    assert total == pytest.approx(accuracy / 0.9 - 1 + weight * (1 - macs), abs=1e-9)


def test_tradeoff_ends_below_the_floor_and_not_on_it() -> None:
    reward = Tradeoff(accuracy_floor=0.5)
    assert reward(end(0.44, 0.5, last=False)).ended
    assert not reward(end(0.45, 0.5, last=False)).ended


@pytest.mark.parametrize("name", ["budget", "amc"])
def test_only_the_tradeoff_ends_an_episode(name: str) -> None:
    assert not REWARDS[name](end(0.0, 0.1, last=False)).ended


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"macs_weight": -1.0}, "macs_weight .*-1.0"),
        ({"macs_weight": math.nan}, "macs_weight .*nan"),
        ({"accuracy_floor": 50.0}, "accuracy_floor .*50.0"),
    ],
)
def test_tradeoff_parameters_are_checked(parameters: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Tradeoff(**parameters)


@pytest.mark.parametrize(("macs", "weight"), [(1.0, 1.0), (0.5, math.log(3, 4)), (0.0, 0.5)])
def test_amc_by_hand(macs: float, weight: float) -> None:
    assert amc(end(0.6, macs)).reward == pytest.approx(-0.4 * weight)


def test_amc_pays_in_the_last_round_only() -> None:
    assert amc(end(0.6, 0.5, last=False)).reward == 0


@given(fractions, fractions, fractions, fractions)
def test_amc_is_bounded_and_falls_with_error_and_macs(worse: float, better: float, more: float, less: float) -> None:
    worse, better = sorted((worse, better))
    less, more = sorted((less, more))
    assert -1 - 1e-12 <= amc(end(worse, more)).reward <= amc(end(better, less)).reward <= 0


def test_errors_of_a_network_without_macs_still_cost() -> None:
    """With log(MACs ratio) the sign would change below 1, and the empty network would win."""
    assert amc(end(0.1, 0.0)).reward < amc(end(0.9, 1.0)).reward


@pytest.mark.parametrize("macs", [1e-3, 0.1, 0.5, 1.0])
def test_macs_do_not_dominate_accuracy_in_amc(macs: float) -> None:
    """Ten points of accuracy change the reward by at least five points, at any cost."""
    assert 0.05 <= amc(end(0.8, macs)).reward - amc(end(0.7, macs)).reward <= 0.1 + 1e-12


@given(episodes)
def test_rewards_are_pure_and_small(states: list[tuple[float, float]]) -> None:
    for name, step in itertools.product(BUILT_IN, inputs(states)):
        first = REWARDS[name](step)
        assert first == REWARDS[name](step)
        assert isinstance(first, RoundReward)
        assert math.isfinite(first.reward)
        assert abs(first.reward) < 2


@pytest.mark.parametrize("name", BUILT_IN)
def test_rewards_pickle_because_the_environment_must(name: str) -> None:
    step = end(0.7, 0.5)
    assert pickle.loads(pickle.dumps(REWARDS[name]))(step) == REWARDS[name](step)


@pytest.mark.parametrize("original", [0.0, math.nan])
def test_the_original_accuracy_must_be_above_0(original: float) -> None:
    with pytest.raises(ValueError, match=f"original_accuracy .*{original}"):
        RewardInput(0.0, 0.0, original, 1.0, 0.5, last=True)


class TestRegistry:
    def test_the_built_in_rewards(self) -> None:
        assert set(REWARDS) == set(BUILT_IN)

    def test_a_registered_reward_has_a_name_in_the_settings(self, make_env: EnvMaker) -> None:
        with pytest.raises(ValueError, match="'squared'"):
            EnvConfig(reward="squared")

        @register_reward("squared")
        def squared(step: RewardInput) -> RoundReward:
            return RoundReward((step.accuracy_after / step.original_accuracy) ** 2 if step.last else 0.0)

        assert squared is REWARDS["squared"], "the decorator returns the function"
        env = make_env(reward="squared", target_macs=None)
        record = play(env)
        ratio = last_info(record)["accuracy"] / env.evaluator.original_accuracy
        assert [result[1]["conv_0"] for result in record[1:]] == pytest.approx([0, 0, ratio**2])

    def test_a_name_is_registered_once(self) -> None:
        register_reward("registered")(amc)
        for name in ("registered", "tradeoff"):
            with pytest.raises(ValueError, match=f"'{name}'"):
                register_reward(name)(budget)
        assert REWARDS["registered"] is amc

    def test_a_notebook_cell_that_runs_again_replaces_its_function(self) -> None:
        def cell() -> RewardFunction:
            @register_reward("from_a_cell")
            def from_a_cell(step: RewardInput) -> RoundReward:
                return RoundReward(step.accuracy_after)

            return from_a_cell

        first, second = cell(), cell()
        assert first is not second
        assert REWARDS["from_a_cell"] is second
