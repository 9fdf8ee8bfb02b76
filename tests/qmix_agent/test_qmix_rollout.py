"""Environments as arrays: padding, masks, endings, the team's reward; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from games import DictMasks, Game, LeavesEarly, Meet, Ragged, TwoStep
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from pettingzoo.test import parallel_api_test

from qmix_agent import QMIXConfig
from qmix_agent.learner import Learner
from qmix_agent.padding import flatten, pad_masks, space_spec
from qmix_agent.replay_buffer import ReplayBuffer, from_tensors, pad, to_tensors
from qmix_agent.rollout import Start, Team, play_episodes
from qmix_agent.team_env import TeamEnv, team_reward, team_scalars
from qmix_agent.types import Episode

CONFIG = QMIXConfig(hidden_size=8)


def played(env: Game, seed: int, epsilon: float = 1.0) -> tuple[TeamEnv, Episode, dict[str, float]]:
    view = TeamEnv(env)
    learner = Learner(view.spec, CONFIG, seed=0, device="cpu")
    team = Team(learner.network, view.spec, "agent", torch.device("cpu"))
    return view, *play_episodes([view], team, [Start(seed, epsilon, np.random.default_rng(seed))])[0]


@pytest.mark.parametrize("game", [TwoStep, DictMasks, Meet])  # PettingZoo's test samples without masks from infos
def test_the_games_are_parallel_envs(game: Callable[[], Game]) -> None:
    env = game()
    env.metadata = {"name": "game", "render_modes": []}
    parallel_api_test(env, num_cycles=20)


@pytest.mark.parametrize("game", [Ragged, DictMasks])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_unequal_agents_are_padded_and_only_take_what_is_legal(game: Callable[[], Game], epsilon: float) -> None:
    """Case 21."""
    for seed in range(10):  # the game itself raises for an illegal action
        env, episode, _ = played(game(), seed, epsilon)
        steps = len(episode)
        assert env.spec.n_actions == (3, 5, 1)
        assert episode.observations.shape == (steps + 1, 3, 3)
        assert episode.action_masks.shape == (steps + 1, 3, 5)
        assert episode.states.shape == (steps + 1, 4)
        assert episode.observations[:, 0, 1:].sum() == 0
        assert not episode.action_masks[:, 0, 3:].any()
        assert episode.action_masks[:steps].any(axis=-1).all()
        assert np.take_along_axis(episode.action_masks[:-1], episode.actions[..., None], -1).all()
        assert (episode.actions[:, 2] == 0).all()
        assert episode.states[:, 0].tolist() == [*range(steps), 0 if episode.terminated[-1] else steps]


def test_masks_beside_observations_and_in_infos_are_the_same_game() -> None:
    one, two = played(Ragged(), 3)[1], played(DictMasks(), 3)[1]
    for name in ("observations", "action_masks", "actions", "rewards"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


def test_endings() -> None:
    endings = {bool(played(Ragged(), seed)[1].terminated[-1]) for seed in range(10)}
    assert endings == {True, False}
    _, episode, _ = played(Meet(), 0)
    assert not episode.terminated.any()
    assert episode.observations[-1, 0, 0] * 4 in range(5)  # the moment after a truncation is real
    assert episode.observations[-1].any() or episode.observations[0].sum() == 0


def test_an_agent_that_left_sees_nothing_and_does_nothing() -> None:
    _, episode, _ = played(LeavesEarly(), 0)
    assert len(episode) == 3
    assert (episode.observations[1:, 0] == 0).all()
    assert (episode.observations[1:, 1, :2] != 0).all()
    assert episode.action_masks[1:, 0].tolist() == [[True, False, False, False, False]] * 3
    assert (episode.actions[1:, 0] == 0).all()
    assert not episode.terminated.any()


def test_without_a_state_all_observations_are_the_state() -> None:
    env, episode, _ = played(Meet(), 0)
    assert not env.spec.has_state
    assert np.array_equal(episode.states, episode.observations.reshape(len(episode) + 1, -1))


def test_the_teams_reward_is_stored_once() -> None:
    """Case 22: Two agents get 7 each; the team got 7."""

    class Sure(TwoStep):
        def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
            return 7.0, True, False

    _, episode, _ = played(Sure(), 0)
    assert episode.rewards.tolist() == [7.0]
    assert pad([episode]).rewards.shape == (1, 1)


def test_different_rewards_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"different rewards: \{'a': 1.0, 'b': 2.0\}"):
        team_reward({"a": 1, "b": 2})
    with pytest.raises(ValueError, match="finite"):
        team_reward({"a": float("nan"), "b": float("nan")})
    with pytest.raises(ValueError, match="no rewards"):
        team_reward({})
    assert team_reward({"a": np.float32(0.1), "b": 0.1}) == pytest.approx(0.1)


def test_infos_that_all_agents_agree_on() -> None:
    infos = {
        "a": {"accuracy": np.float32(0.5), "own": 1, "mask": np.ones(2), "name": "x", "n": 3, "only": 1},
        "b": {"accuracy": np.float32(0.5), "own": 2, "mask": np.ones(2), "name": "x", "n": 3},
    }
    assert team_scalars(infos) == {"accuracy": 0.5, "n": 3.0}
    assert team_scalars({}) == {}


# Spaces


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2, 3), np.float32),
        spaces.Box(0, 255, (4,), np.uint8),
        spaces.Discrete(5),
        spaces.Discrete(4, start=-2),
        spaces.MultiBinary((2, 2)),
    ],
)
def test_flattened_as_gymnasium_does(space: spaces.Space) -> None:
    spec = space_spec("a", space)
    space.seed(0)
    for _ in range(5):
        sample = space.sample()
        assert np.array_equal(flatten("a", spec, sample), gymnasium.spaces.flatten(space, sample).astype(np.float32))
    assert spec.size == gymnasium.spaces.flatdim(space)


def test_actions_that_do_not_start_at_zero() -> None:
    class Shifted(TwoStep):
        def __init__(self) -> None:
            super().__init__()
            self.action_spaces = {agent: spaces.Discrete(2, start=3) for agent in self.possible_agents}

        def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
            assert set(actions.values()) <= {3, 4}
            return super().play({agent: action - 3 for agent, action in actions.items()})

    _, episode, _ = played(Shifted(), 0)
    assert set(episode.actions.ravel()) <= {0, 1}


class Broken(TwoStep):
    """TwoStep with one thing wrong."""

    def __init__(self, **wrong: Any) -> None:
        super().__init__()
        self.wrong = wrong
        if "action_space" in wrong:
            self.action_spaces["agent_1"] = wrong["action_space"]
        if "observation_space" in wrong:
            self.observation_spaces["agent_1"] = wrong["observation_space"]

    def tell(self) -> dict[str, dict[str, Any]]:
        told = super().tell()
        if "mask" in self.wrong and "agent_1" in told:
            told["agent_1"]["action_mask"] = self.wrong["mask"]
        return told

    def observe(self) -> dict[str, Any]:
        seen = super().observe()
        if "observation" in self.wrong and "agent_1" in seen:
            seen["agent_1"] = self.wrong["observation"]
        if "missing" in self.wrong:
            seen.pop("agent_1", None)
        return seen

    def state(self) -> np.ndarray:
        return np.zeros(2 + self.time) if "state" in self.wrong else super().state()

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        result = super().step(actions)
        if "rewards" in self.wrong:
            result[1]["agent_1"] += 1
        return result


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"action_space": spaces.Box(-1, 1, (2,))}, "action space of agent 'agent_1' is Box.*Discrete"),
        ({"observation_space": spaces.Text(5)}, "observation space of agent 'agent_1' is Text"),
        ({"observation_space": spaces.Dict({"x": spaces.Discrete(2)})}, "observation space of agent 'agent_1' is Dict"),
        ({"mask": np.zeros(2, np.int8)}, "mask of agent 'agent_1' allows no action"),
        ({"mask": np.ones(3, np.int8)}, r"mask of agent 'agent_1' has shape \(3,\); it has 2 actions"),
        ({"observation": np.zeros(4, np.float32)}, r"observation of agent 'agent_1' has shape \(4,\)"),
        ({"observation": np.full(3, np.nan, np.float32)}, "observation of agent 'agent_1' has entries"),
        ({"missing": True}, r"no observation for agents \['agent_1'\]"),
        ({"state": True}, "expected 2 finite numbers"),
        ({"rewards": True}, r"different rewards: \{'agent_0': 0.0, 'agent_1': 1.0\}"),
    ],
)
def test_what_qmix_cannot_play_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        played(Broken(**wrong), 0)


def test_no_legal_action_is_no_error_for_those_who_are_done() -> None:
    class Over(TwoStep):
        def tell(self) -> dict[str, dict[str, Any]]:
            return {agent: {"action_mask": np.full(2, self.time < 2, np.int8)} for agent in self.agents}

    assert len(played(Over(), 0)[1]) == 2


def test_an_aec_env_is_refused() -> None:
    from pettingzoo.utils.conversions import parallel_to_aec

    env = TwoStep()
    env.metadata = {"name": "game", "is_parallelizable": True, "render_modes": []}
    env.render_mode = None
    with pytest.raises(ValueError, match="aec_to_parallel"):
        TeamEnv(parallel_to_aec(env))


def test_masks_of_absent_agents_leave_the_pad_action() -> None:
    masks = pad_masks(TeamEnv(Ragged()).spec, {"agent_1": None})
    assert masks.tolist() == [[True] + [False] * 4, [True] * 5, [True] + [False] * 4]


# Replay


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_batches_are_padded_and_come_back_whole(lengths: list[int]) -> None:
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            rng.normal(size=(n + 1, 2, 3)).astype(np.float32),
            rng.normal(size=(n + 1, 4)).astype(np.float32),
            np.ones((n + 1, 2, 2), dtype=bool),
            rng.integers(0, 2, (n, 2)),
            rng.normal(size=n).astype(np.float32),
            np.zeros(n, dtype=bool),
        )
        for n in lengths
    ]
    batch = pad(episodes)
    assert batch.filled.sum(dim=1).tolist() == lengths
    for row, episode in enumerate(episodes):
        n = len(episode)
        assert np.array_equal(batch.observations[row, : n + 1], episode.observations)
        assert np.array_equal(batch.rewards[row, :n], episode.rewards)
        assert not batch.observations[row, n + 1 :].any()
        assert not batch.action_masks[row, n + 1 :].any()
        assert not batch.rewards[row, n:].any()
    for one, two in zip(episodes, from_tensors(to_tensors(episodes)), strict=True):
        for name in Episode.__dataclass_fields__:
            assert np.array_equal(getattr(one, name), getattr(two, name))
            assert getattr(one, name).dtype == getattr(two, name).dtype
    assert from_tensors(to_tensors([])) == []


def test_a_full_buffer_drops_the_oldest_and_draws_distinct_episodes() -> None:
    buffer = ReplayBuffer(3)
    episodes = [played(Ragged(), seed)[1] for seed in range(5)]
    for episode in episodes:
        buffer.add(episode)
    assert list(buffer) == episodes[2:]
    drawn = buffer.sample(2, np.random.default_rng(0))
    assert drawn[0] is not drawn[1]
    assert {id(one) for one in buffer.sample(9, np.random.default_rng(0))} == {id(one) for one in episodes[2:]}
    again = [id(one) for one in buffer.sample(2, np.random.default_rng(1))]
    assert [id(one) for one in buffer.sample(2, np.random.default_rng(1))] == again


def test_wrappers_are_not_passed_by() -> None:
    """PettingZoo's wrappers give out what they lack from the environment inside: its halves of a step, its clones."""
    from pettingzoo.utils import BaseParallelWrapper

    class Halved(TwoStep):  # steps in halves, and clones
        def step_async(self, actions):
            self.sent = actions

        def step_wait(self):
            return self.step(self.sent)

        def clone(self):
            return Halved()

    class Doubled(BaseParallelWrapper):
        def step(self, actions):
            observations, rewards, *rest = super().step(actions)
            return observations, {agent: 2 * reward + 1 for agent, reward in rewards.items()}, *rest

    env = TeamEnv(Doubled(Halved()))
    assert isinstance(env.copy().env, Doubled)
    env.reset(0)
    env.step_async(np.zeros(env.spec.n_agents, dtype=np.int64))
    assert env.step_wait()[1] % 2 == 1
