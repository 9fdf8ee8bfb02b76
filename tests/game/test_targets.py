"""Games with several MACs targets: which one an episode gets, and what the agents see of it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from episodes import EnvMaker, equal, last_info, play
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env import EnvConfig
from prune_env.game.budget import Budget
from prune_env.game.targets import Deck, target_tuple
from prune_env.single_agent import Joint, LayerByLayer

SEVERAL = (0.3, 0.5, 0.7)
targets = st.lists(st.floats(0.01, 1), min_size=1, max_size=6, unique=True)


@settings(max_examples=30, deadline=None)
@given(targets=targets, decks=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_deck_deals_all_targets_equally_often(targets: list[float], decks: int, seed: int) -> None:
    deck, rng = Deck(targets), np.random.default_rng(seed)
    assert Counter(deck.deal(rng) for _ in range(decks * len(targets))) == dict.fromkeys(targets, decks)


def test_repeated_targets_count_once() -> None:
    assert target_tuple((0.5, 0.3, 0.5)) == (0.5, 0.3)
    assert target_tuple(0.5) == (0.5,)
    assert target_tuple(None) == (None,)


@pytest.mark.parametrize("wrong", [(), (0.5, 0.0), (0.5, 1.5), (0.5, None), (0.5, "0.3"), (0.5, True), (float("nan"),)])
def test_wrong_targets_are_refused_by_name(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="target_macs"):
        EnvConfig(target_macs=wrong)


def test_a_list_is_as_good_as_a_tuple() -> None:
    assert EnvConfig(target_macs=[0.3, 0.5]) == EnvConfig(target_macs=(0.3, 0.5))  # type: ignore[arg-type]


def test_every_target_must_be_in_reach(make_env: EnvMaker) -> None:
    with pytest.raises(ValueError, match=r"target_macs=0\.0001"):
        make_env(target_macs=(0.5, 0.0001))


def test_an_episode_meets_its_target_and_shows_it(make_env: EnvMaker) -> None:
    env = make_env(target_macs=SEVERAL)
    column, place = env.observation_names.index("target_macs"), env.state_names.index("target_macs")
    met = Counter()
    for seed in range(6):
        record = play(env, seed)
        target = env.budget.target
        assert target is not None
        met[target] += 1
        assert target - Budget.tolerance <= last_info(record)["macs_ratio"] <= target
        for result in record:
            assert {float(observation[column]) for observation in result[0].values()} == {np.float32(target)}
        assert env.state()[place] == np.float32(target)
    assert met == dict.fromkeys(SEVERAL, 2)


def test_options_fix_the_target_of_one_episode(make_env: EnvMaker) -> None:
    env = make_env(target_macs=SEVERAL)
    dealt = []
    for _ in range(len(SEVERAL)):
        env.reset(options={"target_macs": 0.4})  # not one of the game's
        assert env.budget.target == 0.4
        env.reset()
        dealt.append(env.budget.target)
    assert sorted(dealt) == sorted(SEVERAL), "fixed targets are not taken from the deck"


@pytest.mark.parametrize("wrong", [0, 1.5, "half", 0.0001])
def test_a_wrong_target_in_the_options_is_refused(make_env: EnvMaker, wrong: Any) -> None:
    with pytest.raises(ValueError, match="target_macs"):
        make_env(target_macs=SEVERAL).reset(options={"target_macs": wrong})


def test_a_game_without_a_budget_takes_no_target(make_env: EnvMaker) -> None:
    with pytest.raises(ValueError, match="target_macs"):
        make_env(target_macs=None, reward="amc").reset(options={"target_macs": 0.5})


def test_equal_seeds_give_equal_episodes(make_env: EnvMaker) -> None:
    one, two = make_env(target_macs=SEVERAL), make_env(target_macs=SEVERAL)
    assert all(equal(play(one, seed), play(two, seed)) for seed in range(4))


def test_clones_share_the_deck_and_can_have_a_target_of_their_own(make_env: EnvMaker) -> None:
    env = make_env(target_macs=SEVERAL)
    other, fixed = env.clone(), env.clone(target=0.4)
    dealt = []
    for game in (env, other, env):
        game.reset(seed=0)
        dealt.append(game.budget.target)
        fixed.reset(seed=0)
        assert fixed.budget.target == fixed.config.target_macs == 0.4
    assert sorted(dealt) == sorted(SEVERAL)
    play(fixed)
    assert fixed.plan in env.archive


def test_the_state_of_a_clone_with_one_target_belongs_to_a_game_with_that_target(make_env: EnvMaker) -> None:
    env = make_env(target_macs=SEVERAL)
    assert env.fingerprint
    fixed = env.clone(target=0.4)
    play(fixed)
    other = make_env(target_macs=0.4)
    other.load_state_dict(fixed.state_dict())
    assert fixed.plan in other.archive


def test_a_resumed_game_continues_with_the_same_deck(make_env: EnvMaker) -> None:
    env = make_env(target_macs=SEVERAL)
    play(env, 0)
    other = make_env(target_macs=SEVERAL)
    other.load_state_dict(env.state_dict())
    for seed in (1, 2, 3):
        env.reset(seed=seed)
        other.reset(seed=seed)
        assert env.budget.target == other.budget.target


def test_the_archive_answers_for_every_target(make_env: EnvMaker) -> None:
    env = make_env(target_macs=SEVERAL)
    for seed in range(9):
        play(env, seed)
    for target in SEVERAL:
        affordable = [entry.accuracy for entry in env.archive if entry.macs_ratio <= target]
        assert [entry.accuracy for entry in env.archive.best(3, target_macs=target)] == sorted(affordable)[:-4:-1]
    front = env.archive.front()
    for entry in env.archive:
        assert any(one.macs_ratio <= entry.macs_ratio and one.accuracy >= entry.accuracy for one in front)
    for cheap, expensive in pairwise(front):
        assert cheap.macs_ratio < expensive.macs_ratio
        assert cheap.accuracy < expensive.accuracy


def test_single_agent_views_know_the_target(make_env: EnvMaker) -> None:
    joint, layers = Joint(make_env(target_macs=SEVERAL)), LayerByLayer(make_env(target_macs=SEVERAL))
    for target in (0.4, 0.6):
        state, _ = joint.reset(options={"target_macs": target})
        assert state[joint.game.state_names.index("target_macs")] == np.float32(target)
        observation, _ = layers.reset(options={"target_macs": target})
        assert observation[layers.observation_names.index("target_macs")] == np.float32(target)
        ended = False
        while not ended:
            _, _, ended, _, info = layers.step(np.array([0.9], np.float32))
        assert target - Budget.tolerance <= info["macs_ratio"] <= target


def test_an_imagined_game_evaluates_nothing(make_env: EnvMaker) -> None:
    env = make_env(target_macs=SEVERAL, every_round=True)
    env.reset(seed=0)
    imagined = env.imagine()
    before = env.evaluator.evaluations
    imagined.reset(options=env.episode_options)
    assert imagined.budget.target == env.budget.target
    while imagined.agents:
        imagined.step({agent: 1 for agent in imagined.agents})
    assert env.evaluator.evaluations == before
    assert not imagined.known
    assert len(env.archive) == 0
    while env.agents:
        env.step({agent: 1 for agent in env.agents})
    assert env.plan == imagined.plan
    assert imagined.known
