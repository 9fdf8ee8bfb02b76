"""QMIX as users hold it: construction, act, learn and evaluate."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from games import DictMasks, LeavesEarly, Meet, Memory, Ragged, TwoStep
from qmix_helpers import SMALL, rows_of, weights

from qmix_agent import QMIX

# Construction


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_a_seed_that_is_not_a_non_negative_integer_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed"):
        QMIX(TwoStep(), SMALL, seed=seed)


def test_a_config_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="QMIXConfig"):
        QMIX(TwoStep(), {"mixer": "vdn"})  # type: ignore[arg-type]


# learn


@pytest.mark.parametrize("name", ["total_episodes", "n_envs"])
@pytest.mark.parametrize("value", [0, 1.5, True])
def test_counts_that_are_not_positive_integers_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        QMIX(TwoStep(), SMALL).learn(**{"total_episodes": 1, "progress": False, name: value})


def test_total_episodes_counts_the_agents_lifetime(tmp_path: Path) -> None:
    called: list[tuple[QMIX, int]] = []

    def callback(agent: QMIX, row: dict[str, Any]) -> None:
        called.append((agent, row["episode"]))

    agent = QMIX(TwoStep(), SMALL).learn(total_episodes=3, progress=False, callback=callback)
    agent.save(tmp_path)
    loaded = QMIX.load(tmp_path, TwoStep())
    assert loaded.learn(5, progress=False, callback=callback) is loaded
    loaded.learn(5, progress=False, callback=callback)
    assert [episode for _, episode in called] == [1, 2, 3, 4, 5]
    assert all(first is (agent if episode <= 3 else loaded) for first, episode in called)
    assert agent.episode == 3
    assert loaded.episode == 5
    assert loaded.env_steps == 10


def test_the_directories_may_be_positional(tmp_path: Path) -> None:
    QMIX(TwoStep(), SMALL).learn(2, tmp_path / "log", tmp_path / "checkpoint", progress=False)
    assert len(rows_of(tmp_path / "log")) == 2
    assert QMIX.checkpoint_exists(tmp_path / "checkpoint")


# evaluate


def test_an_evaluation_is_the_mean_return_with_its_error() -> None:
    agent = QMIX(Meet(), SMALL)
    result = agent.evaluate(episodes=4)
    assert result.mean == pytest.approx(np.mean(result.returns))
    assert result.standard_error == pytest.approx(np.std(result.returns, ddof=1) / 2)
    assert result.lengths == (5, 5, 5, 5)
    assert {name: sum(counts) for name, counts in result.action_counts.items()} == {"agent_0": 20, "agent_1": 20}
    assert math.isnan(agent.evaluate(episodes=1).standard_error)


def test_another_environment_can_be_evaluated_if_its_specification_is_equal() -> None:
    agent = QMIX(Meet(), SMALL)
    assert agent.evaluate(Meet(), episodes=4) == agent.evaluate(episodes=4)
    with pytest.raises(ValueError, match="n_actions"):
        agent.evaluate(TwoStep(), episodes=1)
    with pytest.raises(ValueError, match="episodes"):
        agent.evaluate(episodes=0)


def test_action_counts_include_only_agents_that_acted() -> None:
    agent = QMIX(LeavesEarly(), dataclasses.replace(SMALL, mixer="vdn", recurrent=False))
    with torch.no_grad():  # the last legal action is always the best
        agent.learner.network.head.weight.zero_()
        agent.learner.network.head.bias.copy_(torch.arange(5.0))
    counts = agent.evaluate(episodes=4).action_counts
    assert [len(row) for row in counts.values()] == [3, 5, 1]
    assert [sum(row) for row in counts.values()] == [4, 12, 12]  # agent_0 leaves after the first of three steps
    assert counts["agent_2"] == (12,)
    assert counts["agent_1"][4] > 0
    assert counts["agent_0"][0] < 4


def test_training_and_evaluation_use_different_seeds() -> None:
    class RecordsSeeds(TwoStep):
        def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
            seeds.append(seed)
            return super().reset(seed, options)

    seeds: list[int | None] = []
    agent = QMIX(RecordsSeeds(), dataclasses.replace(SMALL, eval_every=0))
    seeds.clear()
    agent.learn(10, progress=False)
    training = set(seeds)
    seeds.clear()
    agent.evaluate(episodes=5)
    first = list(seeds)
    agent.evaluate(episodes=5)
    assert len(training) == 10
    assert len(set(first)) == 5
    assert not training & set(first)
    assert seeds == first * 2


# act


def test_act_keeps_hidden_states_and_last_actions_until_reset(untouched_rngs: None) -> None:
    def record(_: torch.nn.Module, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]) -> None:
        _, last, hidden = inputs
        last_actions.append(last.flatten().tolist())
        hidden_states.append(hidden)

    last_actions: list[list[int]] = []
    hidden_states: list[torch.Tensor | None] = []
    agent = QMIX(Memory(), SMALL)
    agent.learner.network.register_forward_pre_hook(record)
    shown = {name: np.array([1.0, 0.0], np.float32) for name in agent.spec.agents}
    blank = {name: np.array([0.0, 0.3], np.float32) for name in agent.spec.agents}
    first = agent.act(shown, reset=True)
    agent.act(blank)
    agent.act(blank, reset=True)
    agent.act(blank)
    agent.act(shown, reset=True)
    agent.act(blank)
    assert last_actions[0] == last_actions[2] == last_actions[4] == [-1, -1]
    assert last_actions[1] == last_actions[5] == list(first.values())
    assert hidden_states[0] is hidden_states[2] is hidden_states[4] is None
    after_shown, after_blank, after_shown_again = hidden_states[1], hidden_states[3], hidden_states[5]
    assert after_shown is not None
    assert after_blank is not None
    assert after_shown_again is not None
    assert torch.equal(after_shown, after_shown_again)
    assert not torch.equal(after_shown, after_blank)


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_act_returns_a_legal_action_for_each_agent(epsilon: float) -> None:
    agent, env = QMIX(Ragged(), SMALL).learn(6, progress=False), Ragged()
    for seed in range(4):
        observations, infos = env.reset(seed=seed)
        reset = True
        while env.agents:
            masks = {name: infos[name]["action_mask"] for name in env.agents}
            actions = agent.act(observations, masks, reset=reset, epsilon=epsilon)
            reset = False
            assert set(actions) == set(env.agents)
            assert all(type(action) is int for action in actions.values())
            observations, _, _, _, infos = env.step(actions)  # raises for an illegal action


def test_act_plays_as_evaluate_does() -> None:
    class RecordsActions(Ragged):
        def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
            recorded.append(actions)
            return super().step(actions)

        def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
            seeds.append(seed)
            return super().reset(seed, options)

    recorded: list[dict[str, int]] = []
    seeds: list[int | None] = []
    agent = QMIX(Ragged(), SMALL).learn(8, progress=False)
    env = RecordsActions()
    agent.evaluate(env, episodes=3)
    evaluated = list(recorded)
    recorded.clear()
    for seed in seeds[-3:]:
        observations, infos = env.reset(seed=seed)
        reset = True
        while env.agents:
            masks = {name: infos[name]["action_mask"] for name in env.agents}
            observations, _, _, _, infos = env.step(agent.act(observations, masks, reset=reset))
            reset = False
    assert recorded == evaluated


def test_act_reads_masks_from_dict_observations_and_skips_agents_that_left() -> None:
    agent, env = QMIX(DictMasks(), SMALL), DictMasks()
    observations, _ = env.reset(seed=1)
    env.step(agent.act(observations, reset=True))
    del observations["agent_0"]
    assert set(agent.act(observations)) == {"agent_1", "agent_2"}


def test_act_refuses_invalid_arguments() -> None:
    agent = QMIX(TwoStep(), SMALL)
    valid = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="bob"):
        agent.act({"bob": valid})
    with pytest.raises(ValueError, match=r"agent_0.*\(2,\)"):
        agent.act({"agent_0": np.zeros(2)})
    with pytest.raises(ValueError, match="agent_0"):
        agent.act({"agent_0": valid}, {"agent_0": [0, 0]})
    with pytest.raises(ValueError, match="epsilon"):
        agent.act({"agent_0": valid}, epsilon=2)


def test_a_single_environment_and_a_list_of_one_are_the_same(tmp_path: Path) -> None:
    agents = [
        QMIX(env, SMALL, seed=3).learn(7, log_dir=tmp_path / str(index), n_envs=n_envs, progress=False)
        for index, (env, n_envs) in enumerate(((Ragged(), None), ([Ragged()], None), (Ragged(), 1)))
    ]
    assert weights(agents[0]) == weights(agents[1]) == weights(agents[2])
    assert rows_of(tmp_path / "0") == rows_of(tmp_path / "1") == rows_of(tmp_path / "2")
