"""Environments as arrays: team reward, infos, wrappers, and environments that QMIX cannot play."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from games import TwoStep
from gymnasium import spaces
from pettingzoo.utils import BaseParallelWrapper
from pettingzoo.utils.conversions import parallel_to_aec

from qmix_agent.team_env import TeamEnv, shared_info_scalars, team_reward

# Rewards and infos


@pytest.mark.parametrize(
    ("rewards", "named"),
    [
        ({"a": 1, "b": 2}, r"'a': 1.0, 'b': 2.0"),
        ({"a": float("nan"), "b": float("nan")}, "nan"),
        ({}, "rewards"),
    ],
)
def test_rewards_that_are_not_one_team_reward_are_refused(rewards: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        team_reward(rewards)


def test_rewards_that_differ_by_rounding_are_one_team_reward() -> None:
    assert team_reward({"a": np.float32(0.1), "b": 0.1}) == pytest.approx(0.1)


def test_shared_scalars_are_the_numbers_on_which_all_infos_agree() -> None:
    infos = {
        "a": {"accuracy": np.float32(0.5), "own": 1, "mask": np.ones(2), "name": "x", "n": 3, "only": 1},
        "b": {"accuracy": np.float32(0.5), "own": 2, "mask": np.ones(2), "name": "x", "n": 3},
    }
    assert shared_info_scalars(infos) == {"accuracy": 0.5, "n": 3.0}
    assert shared_info_scalars({}) == {}


# Environments that cannot be played


class Broken(TwoStep):
    """TwoStep with one defect."""

    def __init__(self, **defect: Any) -> None:
        super().__init__()
        self.defect = defect
        if "action_space" in defect:
            self.action_spaces["agent_1"] = defect["action_space"]
        if "observation_space" in defect:
            self.observation_spaces["agent_1"] = defect["observation_space"]

    def infos(self) -> dict[str, dict[str, Any]]:
        infos = super().infos()
        if "mask" in self.defect and "agent_1" in infos:
            infos["agent_1"]["action_mask"] = self.defect["mask"]
        return infos

    def observe(self) -> dict[str, Any]:
        observations = super().observe()
        if "observation" in self.defect and "agent_1" in observations:
            observations["agent_1"] = self.defect["observation"]
        if "missing" in self.defect:
            observations.pop("agent_1", None)
        return observations

    def state(self) -> np.ndarray:
        return np.zeros(2 + self.time) if "state" in self.defect else super().state()

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        result = super().step(actions)
        if "rewards" in self.defect:
            result[1]["agent_1"] += 1
        return result


@pytest.mark.parametrize(
    ("defect", "named"),
    [
        ({"action_space": spaces.Box(-1, 1, (2,))}, "'agent_1'.*Box"),
        ({"observation_space": spaces.Text(5)}, "'agent_1'.*Text"),
        ({"observation_space": spaces.Dict({"x": spaces.Discrete(2)})}, "'agent_1'.*Dict"),
        ({"mask": np.zeros(2, np.int8)}, "mask.*'agent_1'"),
        ({"mask": np.ones(3, np.int8)}, r"mask.*'agent_1'.*\(3,\)"),
        ({"observation": np.zeros(4, np.float32)}, r"'agent_1'.*\(4,\)"),
        ({"observation": np.full(3, np.nan, np.float32)}, "'agent_1'.*nan"),
        ({"missing": True}, "'agent_1'"),
        ({"state": True}, r"state\(\)"),
        ({"rewards": True}, "'agent_0': 0.0, 'agent_1': 1.0"),
    ],
)
def test_an_environment_that_qmix_cannot_play_is_refused(defect: dict[str, Any], named: str) -> None:
    def take_one_step() -> None:
        env = TeamEnv(Broken(**defect))
        env.reset(seed=0)
        env.step_async(np.zeros(2, dtype=np.int64))
        env.step_wait()

    with pytest.raises(ValueError, match=named):
        take_one_step()


def test_an_aec_environment_is_refused() -> None:
    env = TwoStep()
    env.metadata = {"name": "game", "is_parallelizable": True, "render_modes": []}
    env.render_mode = None
    with pytest.raises(ValueError, match="aec_to_parallel"):
        TeamEnv(parallel_to_aec(env))


# Wrappers


def test_wrappers_are_not_bypassed() -> None:
    """PettingZoo's wrappers forward missing methods to the inner environment, such as step_async and clone."""

    class Async(TwoStep):
        def step_async(self, actions: dict[str, int]) -> None:
            self.actions = actions

        def step_wait(self) -> tuple[dict, dict, dict, dict, dict]:
            return self.step(self.actions)

        def clone(self) -> Async:
            return Async()

    class Doubled(BaseParallelWrapper):
        def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
            observations, rewards, *rest = super().step(actions)
            return observations, {agent: 2 * reward + 1 for agent, reward in rewards.items()}, *rest

    env = TeamEnv(Doubled(Async()))
    assert isinstance(env.copy().env, Doubled)
    env.reset(0)
    env.step_async(np.zeros(env.spec.n_agents, dtype=np.int64))
    assert env.step_wait().reward % 2 == 1
