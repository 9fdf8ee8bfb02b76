"""Planning: many episodes are imagined, and the one that the mixer values most is played."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from games import Game, Meet, Outcome
from qmix_helpers import SMALL, rows_of, weights

from qmix_agent import QMIX

CONFIG = dataclasses.replace(
    SMALL, imagined_episodes=8, learning_starts=4, standardise_returns=True, eval_every=0, updates_per_episode=4
)


class Locks(Game):
    """Each agent has one right action in each of two steps; the team is paid at the end for every right one."""

    RIGHT = ((3, 1, 4, 1), (5, 2, 0, 3))

    def __init__(self, paid: set[bytes] | None = None, imagined: bool = False) -> None:
        super().__init__((6, 6, 6, 6), 3)
        self.paid = set() if paid is None else paid
        self.imagined = imagined
        self.episodes = 0

    def imagine(self) -> Locks:
        return Locks(self.paid, imagined=True)

    @property
    def episode_options(self) -> dict[str, Any]:
        return {"level": self.level}

    @property
    def known(self) -> bool:
        return self.taken.tobytes() in self.paid

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.level = (options or {}).get("level", (seed or 0) % 2)
        self.episodes += 1
        return super().reset(seed, options)

    def start_episode(self) -> None:
        self.taken = np.zeros((2, 4), np.int64)

    def observe(self) -> dict[str, Any]:
        return {agent: np.array([self.time == 0, self.time == 1, self.level], np.float32) for agent in self.agents}

    def transition(self, actions: dict[str, int]) -> Outcome:
        self.taken[self.time - 1] = [actions[agent] for agent in self.possible_agents]
        last = self.time == 2
        if self.imagined:
            return Outcome(0.0, terminated=last)
        if last:
            assert not self.known or self.may_repeat, "an outcome that is known was played again"
            self.paid.add(self.taken.tobytes())
        return Outcome(float((self.taken == self.RIGHT).sum()) / 8 if last else 0.0, terminated=last)

    may_repeat = False


def returns(agent: QMIX, episodes: int) -> list[float]:
    rows: list[dict[str, Any]] = []
    agent.learn(episodes, progress=False, callback=lambda _, row: rows.append(row))
    return [row["return"] for row in rows]


@pytest.mark.slow
def test_planning_finds_more_in_as_many_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Locks, "may_repeat", True)
    config = dataclasses.replace(
        CONFIG,
        imagined_episodes=32,
        hidden_size=32,
        batch_size=16,
        learning_rate=3e-3,
        learning_starts=8,
        updates_per_episode=8,
    )
    plain = dataclasses.replace(config, imagined_episodes=0, epsilon_episodes=50)
    planned, played = (
        [max(returns(QMIX(Locks(), one, seed=seed), 100)) for seed in range(2)] for one in (config, plain)
    )
    assert sum(planned) > sum(played)


def test_only_played_episodes_count(tmp_path: Path) -> None:
    env = Locks()
    env.may_repeat = True
    agent = QMIX(env, CONFIG).learn(10, log_dir=tmp_path, progress=False)
    assert env.episodes == 11, "one reset reads the specification"
    assert (agent.episode, agent.env_steps) == (10, 20)
    assert [row["length"] for row in rows_of(tmp_path)] == [2] * 10


def test_equal_seeds_give_equal_runs_and_a_resumed_run_ends_the_same(tmp_path: Path) -> None:
    whole, again = (QMIX(Locks(), CONFIG, seed=5).learn(12, progress=False) for _ in range(2))
    assert weights(whole) == weights(again)
    env = Locks()
    QMIX(env, CONFIG, seed=5).learn(7, checkpoint_dir=tmp_path, progress=False)
    resumed = QMIX.load(tmp_path, Locks(paid=env.paid)).learn(12, progress=False)
    assert weights(resumed) == weights(whole)


def test_several_environments_plan_in_turn() -> None:
    env = Locks()
    env.may_repeat = True
    assert QMIX([env, Locks()], CONFIG).learn(12, n_envs=2, progress=False).episode == 12


def test_an_environment_that_cannot_be_imagined_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="imagined_episodes"):
        QMIX(Meet(), CONFIG)
