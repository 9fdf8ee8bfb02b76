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
