"""Rewards: what an episode's return is worth, and that no term drowns another."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_env.game.reward import REWARDS, RewardInput, RoundReward, Tradeoff, amc, budget, get_reward, tradeoff_ended

fractions = st.floats(0, 1)
# (accuracy, MACs ratio) after every round
episodes = st.lists(st.tuples(fractions, fractions), min_size=1, max_size=6)


def inputs(states: list[tuple[float, float]], original: float = 0.9) -> list[RewardInput]:
    """The rounds of an episode that starts from the unpruned network."""
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
def test_the_budget_return_is_the_same_with_the_last_round_evaluated_only(states: list[tuple[float, float]]) -> None:
    blind = [(0.9, macs) for _, macs in states[:-1]] + states[-1:]
    assert sum(budget(step).reward for step in inputs(blind)) == pytest.approx(
        sum(budget(step).reward for step in inputs(states)), abs=1e-9
    )
    assert all(budget(step).reward == 0 for step in inputs(blind)[:-1])


def test_budget_does_not_look_at_the_macs() -> None:
    assert budget(end(0.8, 0.1)) == budget(end(0.8, 0.9))


def test_tradeoff_by_hand() -> None:
    """A tenth of the accuracy is lost and half of the MACs are saved."""
    assert Tradeoff(macs_weight=0.5)(end(0.81, 0.5)).reward == pytest.approx(-0.1 + 0.25)


@given(episodes, st.floats(0, 3))
def test_the_tradeoff_return_is_accuracy_ratio_and_saved_macs(states: list[tuple[float, float]], weight: float) -> None:
    total = sum(Tradeoff(weight)(step).reward for step in inputs(states))
    accuracy, macs = states[-1]
    assert total == pytest.approx(accuracy / 0.9 - 1 + weight * (1 - macs), abs=1e-9)


def test_tradeoff_ends_below_the_floor_and_not_on_it() -> None:
    assert tradeoff_ended(0.49, floor=0.5)
    assert not tradeoff_ended(0.5, floor=0.5)
    reward = Tradeoff(accuracy_floor=0.5)
    assert reward(end(0.44, 0.5, last=False)).ended
    assert not reward(end(0.45, 0.5, last=False)).ended


@pytest.mark.parametrize("name", ["budget", "amc"])
def test_only_the_tradeoff_ends_an_episode(name: str) -> None:
    assert not get_reward(name)(end(0.0, 0.1, last=False)).ended


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"macs_weight": -1.0}, "macs_weight must not be negative, got -1.0"),
        ({"macs_weight": math.nan}, "macs_weight"),
        ({"accuracy_floor": 50.0}, r"accuracy_floor must be in \[0, 1\].*got 50.0"),
    ],
)
def test_tradeoff_parameters_are_checked(parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
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


def test_no_macs_at_all_do_not_excuse_errors() -> None:
    """With log(MACs ratio) the sign changes below 1, and the empty network wins."""
    assert amc(end(0.1, 0.0)).reward < amc(end(0.9, 1.0)).reward


@pytest.mark.parametrize("macs", [1e-3, 0.1, 0.5, 1.0])
def test_accuracy_is_not_drowned_by_macs(macs: float) -> None:
    """Case 15: ten points of accuracy move the reward by at least half of ten points, at any cost."""
    assert 0.05 <= amc(end(0.8, macs)).reward - amc(end(0.7, macs)).reward <= 0.1 + 1e-12


@given(episodes)
def test_rewards_are_pure_and_small(states: list[tuple[float, float]]) -> None:
    for name, step in itertools.product(REWARDS, inputs(states)):
        first = get_reward(name)(step)
        assert first == get_reward(name)(step)
        assert isinstance(first, RoundReward)
        assert math.isfinite(first.reward)
        assert abs(first.reward) < 2


def test_the_registry() -> None:
    assert set(REWARDS) == {"budget", "tradeoff", "amc"}


def test_an_unknown_reward_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"'flops' is unknown; choose one of amc, budget, tradeoff"):
        get_reward("flops")


def test_a_function_of_ones_own_is_taken_as_it_is() -> None:
    def mine(step: RewardInput) -> RoundReward:
        return RoundReward(step.accuracy_after)

    assert get_reward(mine) is mine


@pytest.mark.parametrize("name", ["budget", "tradeoff", "amc"])
def test_rewards_pickle(name: str) -> None:
    """Because the environment must."""
    step = end(0.7, 0.5)
    assert pickle.loads(pickle.dumps(get_reward(name)))(step) == get_reward(name)(step)


@pytest.mark.parametrize("original", [0.0, math.nan])
def test_a_network_that_gets_nothing_right_is_refused(original: float) -> None:
    with pytest.raises(ValueError, match="original_accuracy must be above 0"):
        RewardInput(0.0, 0.0, original, 1.0, 0.5, last=True)
