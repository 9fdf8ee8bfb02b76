"""Counts that end early: how often they are wrong, and what they save."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits
from prune_env.evaluation.measurer import BATCHES
from prune_env.evaluation.racing import Race
from prune_env.game.env import RACED_FOR

TOTAL, LOOKS = 1000, (250, 500, 750)


@given(st.integers(0, TOTAL), st.floats(0, 1), st.floats(1e-6, 0.5), st.integers(0, 2**32 - 1))
def test_what_is_certain_is_never_judged_wrongly(right: int, threshold: float, delta: float, seed: int) -> None:
    """All images seen, or enough right ones already: no race is lost that the plan had won."""
    race = Race(threshold, delta)
    assert not race.is_lost(right, TOTAL, TOTAL)
    hits = np.random.default_rng(seed).permutation(TOTAL) < right
    for seen in LOOKS:
        if hits[:seen].sum() / TOTAL >= threshold:
            assert not race.is_lost(int(hits[:seen].sum()), seen, TOTAL)


@pytest.mark.parametrize("accuracy", [0.5, 0.9])
def test_good_plans_are_given_up_more_rarely_than_promised(accuracy: float) -> None:
    """A plan exactly at the threshold, in 3,000 random orders."""
    rng, delta, lost = np.random.default_rng(0), 0.05, 0
    for _ in range(3000):
        hits = rng.permutation(TOTAL) < accuracy * TOTAL
        lost += any(Race(accuracy, delta).is_lost(int(hits[:seen].sum()), seen, TOTAL) for seen in LOOKS)
    assert lost / 3000 <= len(LOOKS) * delta


def test_hopeless_plans_end_at_the_first_look() -> None:
    assert Race(0.7, 0.01).is_lost(right=round(0.4 * 250), seen=250, total=TOTAL)


@pytest.mark.slow
@pytest.mark.parametrize("batches", [0, 1])
def test_a_search_that_races_finds_the_same_best_plans(
    make_env: Callable[..., FilterPruneEnv], monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    monkeypatch.setitem(BATCHES, "cpu", 50)
    rng = np.random.default_rng(0)
    settings = {"reward_images": 300, "target_macs": 0.2, "finetune_batches": batches}
    exact, raced = (make_env(racing=racing, **settings) for racing in (None, 0.01))
    for _ in range(60):
        infos = [env.reset()[1] for env in (exact, raced)]
        while exact.agents:
            actions = {a: int(rng.choice(np.flatnonzero(infos[0][a]["action_mask"]))) for a in exact.agents}
            infos = [env.step(actions)[4] for env in (exact, raced)]
    answers = [{entry.plan: entry.accuracy for entry in env.archive} for env in (exact, raced)]
    different = [plan for plan in answers[0] if answers[0][plan] != answers[1][plan]]
    assert different, "some counts ended early"
    best = sorted(answers[0].values())[-RACED_FOR]
    assert all(answers[0][plan] <= best for plan in different), "none of them was one of the best"


def test_raced_answers_are_not_kept_on_disk(digits: DataSplits, trained: object, tmp_path: object) -> None:
    env = FilterPruneEnv(trained, digits, EnvConfig(prove=False), cache=tmp_path / "cache.sqlite")  # type: ignore
    plan = (2,) * len(env.groups)
    hopeless = env.evaluator.accuracy(plan, Race(0.99, 0.5))
    assert env.evaluator.accuracy(plan) == hopeless, "one answer to one question, within a run"
    assert env.evaluator.cache is not None
    assert env.evaluator.cache.get(plan) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"racing": 0.0}, "above 0 and below 1"),
        ({"racing": 0.1, "reward": "tradeoff", "target_macs": None}, "needs reward 'budget'"),
        ({"racing": 0.1, "round_finetune_batches": 2}, "round_finetune_batches=0"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnvConfig(**settings)


def test_a_metric_cannot_be_raced(digits: DataSplits, trained: object) -> None:
    with pytest.raises(ValueError, match="racing counts images"):
        FilterPruneEnv(trained, digits, EnvConfig(prove=False, racing=0.1), metric=lambda network, split: 0.5)  # type: ignore


def test_a_race_without_a_look_is_refused(make_env: Callable[..., FilterPruneEnv]) -> None:
    with pytest.raises(ValueError, match=r"racing=0\.1 would change nothing: the 100 reward images"):
        make_env(racing=0.1)
