"""The environment passes PettingZoo's conformance tests, and other libraries' wrappers can play it."""

from __future__ import annotations

import numpy as np
import pettingzoo
import pytest
from episodes import EnvMaker
from pettingzoo.test import api_test, max_cycles_test, parallel_api_test, parallel_seed_test, seed_test
from pettingzoo.test.state_test import state_test
from pettingzoo.utils import parallel_to_aec

from prune_env import FilterPruneEnv


def test_parallel_api(make_env: EnvMaker) -> None:
    parallel_api_test(make_env(), num_cycles=30)


def test_parallel_seed(make_env: EnvMaker) -> None:
    parallel_seed_test(make_env, num_cycles=6)


def test_state(make_env: EnvMaker) -> None:
    state_test(parallel_to_aec(make_env()), make_env(), num_cycles=12)


def test_aec(make_env: EnvMaker) -> None:
    api_test(parallel_to_aec(make_env()), num_cycles=30)
    seed_test(lambda: parallel_to_aec(make_env()), num_cycles=12)


def test_max_cycles(make_env: EnvMaker) -> None:
    class Module:
        """Stands for an environment module in PettingZoo's test."""

        @staticmethod
        def parallel_env(max_cycles: int) -> FilterPruneEnv:
            return make_env(rounds=6, max_cycles=max_cycles, target_macs=0.9)

        @staticmethod
        def env(max_cycles: int) -> pettingzoo.AECEnv:
            return parallel_to_aec(Module.parallel_env(max_cycles))

    max_cycles_test(Module)


def test_no_actions_after_the_end_return_nothing(make_env: EnvMaker) -> None:
    """PettingZoo's own environments do the same."""
    env = make_env(rounds=2)
    with pytest.raises(RuntimeError):
        env.step({})  # no episode has started
    env.reset()
    with pytest.raises(ValueError, match="conv_0"):
        env.step({})
    while env.agents:
        env.step(dict.fromkeys(env.agents, 0))
    state = env.state()
    assert env.step({}) == ({}, {}, {}, {}, {})
    assert np.array_equal(env.state(), state)
    assert len(env.archive) == 1
    with pytest.raises(RuntimeError):
        env.step({"conv_0": 0})


@pytest.mark.supersuit
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("black_death_v3", ()),
        ("frame_stack_v1", (3,)),
        ("pad_observations_v0", ()),
        ("pad_action_space_v0", ()),
        ("flatten_v0", ()),
        ("dtype_v0", (np.float64,)),
        ("normalize_obs_v0", ()),
        ("agent_indicator_v0", ()),
        ("clip_reward_v0", ()),
        ("max_observation_v0", (2,)),
        ("delay_observations_v0", (1,)),
        ("frame_skip_v0", (2,)),
        ("nan_noop_v0", (0,)),
    ],
)
def test_supersuit_wraps_it(make_env: EnvMaker, name: str, arguments: tuple) -> None:
    import supersuit

    env = make_env()
    wrapped = getattr(supersuit, name)(env, *arguments)
    parallel_api_test(wrapped, num_cycles=10)
    assert len(env.archive)
    wrapped.reset()
    for _ in range(2 * env.config.rounds):
        wrapped.step(dict.fromkeys(wrapped.agents, 0))
    assert not wrapped.agents


@pytest.mark.supersuit
def test_supersuit_vectorises_it(make_env: EnvMaker) -> None:
    """The wrapper by which Stable-Baselines3 plays PettingZoo's environments."""
    import supersuit

    vector = supersuit.pettingzoo_env_to_vec_env_v1(make_env())
    observations, _ = vector.reset(seed=0)
    assert observations.shape == (5, len(make_env().observation_names))
    for _ in range(7):  # more than two episodes
        observations, rewards, *_ = vector.step(np.ones(5, dtype=np.int64))
        assert observations.shape[0] == rewards.shape[0] == 5


def test_torchrl_plays_several_episodes(make_env: EnvMaker) -> None:
    """TorchRL's wrapper resets in its constructor, and continues after the end of an episode."""
    from torchrl.envs import PettingZooWrapper

    env = make_env(rounds=2)
    wrapped = PettingZooWrapper(env, use_mask=False)
    rollout = wrapped.rollout(max_steps=5, break_when_any_done=False)  # two episodes and a step
    assert rollout["next", "done"].flatten().tolist() == [False, True, False, True, False]
    assert rollout["conv", "observation"].shape == (5, 5, len(env.observation_names))
    assert len(env.archive) in (1, 2)
