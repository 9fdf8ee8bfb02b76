"""Episodes: padding, masks, endings, and parallel play."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from games import DictMasks, Game, LeavesEarly, Meet, Outcome, Ragged, TwoStep
from gymnasium import spaces
from pettingzoo.test import parallel_api_test
from qmix_helpers import SMALL, equal_episodes

from qmix_agent import QMIX, Episode, QMIXConfig
from qmix_agent.learner import Learner
from qmix_agent.policy import EpsilonGreedyPolicy
from qmix_agent.rollout import EpisodeSettings, play_episodes
from qmix_agent.team_env import TeamEnv


def policy_for(env: TeamEnv, config: QMIXConfig) -> EpsilonGreedyPolicy:
    learner = Learner(env.spec, config, seed=0, device="cpu")
    return EpsilonGreedyPolicy(learner.network, learner.device)


def play(game: Game, seed: int, epsilon: float = 1.0) -> Episode:
    env = TeamEnv(game)
    settings = EpisodeSettings(seed, epsilon, np.random.default_rng(seed))
    return play_episodes([env], policy_for(env, SMALL), [settings])[0].episode


@pytest.mark.parametrize("game", [TwoStep, DictMasks, Meet])  # PettingZoo's test ignores masks in infos
def test_the_games_are_parallel_envs(game: Callable[[], Game]) -> None:
    env = game()
    env.metadata = {"name": "game", "render_modes": []}
    parallel_api_test(env, num_cycles=20)


@pytest.mark.parametrize("game", [Ragged, DictMasks])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_unequal_agents_are_padded_and_only_take_legal_actions(game: Callable[[], Game], epsilon: float) -> None:
    assert TeamEnv(game()).spec.n_actions == (3, 5, 1)
    for seed in range(10):  # the game itself raises for an illegal action
        episode = play(game(), seed, epsilon)
        steps = len(episode)
        assert episode.observations.shape == (steps + 1, 3, 3)
        assert episode.action_masks.shape == (steps + 1, 3, 5)
        assert episode.states.shape == (steps + 1, 4)
        assert episode.observations[:, 0, 1:].sum() == 0
        assert not episode.action_masks[:, 0, 3:].any()
        assert episode.action_masks[:steps].any(axis=-1).all()
        assert np.take_along_axis(episode.action_masks[:-1], episode.actions[..., None], -1).all()
        assert (episode.actions[:, 2] == 0).all()
        assert episode.states[:, 0].tolist() == [*range(steps), 0 if episode.terminated[-1] else steps]


def test_masks_in_observations_and_in_infos_give_the_same_episode() -> None:
    one, two = play(Ragged(), 3), play(DictMasks(), 3)
    for name in ("observations", "action_masks", "actions", "rewards"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


def test_terminations_and_truncations_are_distinguished() -> None:
    endings = {bool(play(Ragged(), seed).terminated[-1]) for seed in range(10)}
    assert endings == {True, False}
    episode = play(Meet(), 0)
    assert not episode.terminated.any()
    assert episode.observations[-1, 0, 0] * 4 in range(5)  # the observation after a truncation is valid
    assert episode.observations[-1].any() or episode.observations[0].sum() == 0


def test_an_agent_that_left_observes_zeros_and_takes_action_0() -> None:
    episode = play(LeavesEarly(), 0)
    assert len(episode) == 3
    assert (episode.observations[1:, 0] == 0).all()
    assert (episode.observations[1:, 1, :2] != 0).all()
    assert episode.action_masks[1:, 0].tolist() == [[True, False, False, False, False]] * 3
    assert (episode.actions[1:, 0] == 0).all()
    assert not episode.terminated.any()


def test_without_state_the_observations_are_the_state() -> None:
    assert not TeamEnv(Meet()).spec.has_state
    episode = play(Meet(), 0)
    assert np.array_equal(episode.states, episode.observations.reshape(len(episode) + 1, -1))


def test_the_team_reward_is_stored_once() -> None:
    class AlwaysSeven(TwoStep):
        def transition(self, actions: dict[str, int]) -> Outcome:
            return Outcome(7.0, terminated=True)

    assert play(AlwaysSeven(), 0).rewards.tolist() == [7.0]


def test_actions_need_not_start_at_zero() -> None:
    class Shifted(TwoStep):
        def __init__(self) -> None:
            super().__init__()
            self.action_spaces = {agent: spaces.Discrete(2, start=3) for agent in self.possible_agents}

        def transition(self, actions: dict[str, int]) -> Outcome:
            assert set(actions.values()) <= {3, 4}
            return super().transition({agent: action - 3 for agent, action in actions.items()})

    assert set(play(Shifted(), 0).actions.ravel()) <= {0, 1}


def test_agents_that_are_done_need_no_legal_action() -> None:
    class Over(TwoStep):
        def infos(self) -> dict[str, dict[str, Any]]:
            return {agent: {"action_mask": np.full(2, self.time < 2, np.int8)} for agent in self.agents}

    assert len(play(Over(), 0)) == 2


# Parallel episodes


@pytest.mark.parametrize("settings", [{}, {"recurrent": False}, {"parameter_sharing": False}])
@pytest.mark.parametrize("game", [Ragged, LeavesEarly])
def test_parallel_episodes_equal_single_ones(game: type[Ragged], settings: dict[str, Any]) -> None:
    """The episodes have different lengths, seeds and epsilons."""

    def episode_settings(seed: int) -> EpisodeSettings:
        return EpisodeSettings(seed, 0.2 * seed, np.random.default_rng(seed))

    envs = [TeamEnv(game()) for _ in range(5)]
    policy = policy_for(envs[0], dataclasses.replace(SMALL, **settings))
    together = play_episodes(envs, policy, [episode_settings(seed) for seed in range(5)])
    for seed, parallel in enumerate(together):
        (alone,) = play_episodes([TeamEnv(game())], policy, [episode_settings(seed)])
        assert equal_episodes(parallel.episode, alone.episode)
        assert parallel.info_scalars == alone.info_scalars
        assert parallel.epsilon == alone.epsilon == 0.2 * seed


def test_all_environments_receive_their_actions_before_the_first_result_is_awaited() -> None:
    class RecordsCalls(Ragged):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def step_async(self, actions: dict[str, int]) -> None:
            calls.append(("async", self.number))
            self.actions = actions

        def step_wait(self) -> Any:
            calls.append(("wait", self.number))
            return super().step(self.actions)

        def step(self, actions: dict[str, int]) -> Any:
            raise AssertionError("step_async and step_wait must be used")

    calls: list[tuple[str, int]] = []
    agent = QMIX([RecordsCalls(index) for index in range(3)], SMALL)
    calls.clear()
    agent.learn(3, progress=False)
    assert calls[:12] == [(kind, n) for kind in ("async", "wait") for n in range(3)] * 2
    assert {n for _, n in calls} == {0, 1, 2}
