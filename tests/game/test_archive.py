"""The archive keeps every distinct finished plan, and the best of them can be taken."""

from __future__ import annotations

import json

import pytest
from episodes import EnvMaker, episode_return, play

from prune_env.game.archive import Archive, Entry


def entry(number: int, episode_return: float) -> Entry:
    return Entry((number, 4), 0.5 + number / 100, 0.5, 0.6, episode_return)


def archive(*entries: Entry) -> Archive:
    filled = Archive()
    for one in entries:
        filled.add(one)
    return filled


def test_plans_stand_in_the_order_of_their_first_evaluation() -> None:
    found = archive(entry(2, 0.1), entry(1, 0.3), entry(2, 0.0))
    assert [one.plan for one in found] == [(2, 4), (1, 4)]
    assert len(found) == 2


def test_a_known_plan_keeps_the_better_return() -> None:
    found = archive(entry(2, 0.1), entry(1, 0.3), entry(2, 0.4), entry(1, 0.2))
    assert [one.episode_return for one in found] == [0.4, 0.3]


def test_a_read_only_view_shows_later_entries_and_adds_none() -> None:
    found = archive(entry(1, 0.1))
    view = found.read_only()
    assert not view.add(entry(2, 0.2))
    assert found.add(entry(3, 0.3))
    assert not found.add(entry(3, 0.4))
    assert list(view) == list(found) == [entry(1, 0.1), entry(3, 0.4)]
    found.load_state_dict(archive(entry(4, 0.1)).state_dict())
    assert list(view) == list(found) == [entry(4, 0.1)]


def test_the_best_have_the_highest_returns_and_ties_stand_in_order() -> None:
    found = archive(entry(1, 0.1), entry(2, 0.3), entry(3, 0.3), entry(4, 0.2))
    assert [one.plan[0] for one in found.best(3)] == [2, 3, 4]
    assert [one.plan[0] for one in found.best(99)] == [2, 3, 4, 1]
    assert found.best() == [entry(2, 0.3)]


def test_the_number_of_best_plans_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"count .*0"):
        archive(entry(1, 0.1)).best(0)


def test_its_state_survives_json() -> None:
    found, restored = archive(entry(1, 0.1), entry(2, 0.3)), archive(entry(7, 0.7))
    restored.load_state_dict(json.loads(json.dumps(found.state_dict())))
    assert list(restored) == list(found)


@pytest.mark.parametrize("reward", ["budget", "amc"])
def test_the_environments_best_plan_has_the_highest_return(make_env: EnvMaker, reward: str) -> None:
    env = make_env(reward=reward, target_macs=0.6)
    returns = {}
    for seed in range(6):
        record = play(env, seed)
        returns[env.plan] = episode_return(record)
    best = env.archive.best()[0]
    assert returns[best.plan] == max(returns.values())
    if reward == "budget":
        assert best.accuracy == max(one.accuracy for one in env.archive)
