"""QMIX as users hold it: act, learn, evaluate, and the log."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from games import DictMasks, Game, LeavesEarly, Meet, Memory, Ragged, TwoStep

from qmix_agent import QMIX, QMIXConfig
from qmix_agent.return_scale import ReturnScale

SMALL = QMIXConfig(
    hidden_size=8,
    mixing_embed=4,
    hypernet_hidden=8,
    batch_size=4,
    learning_starts=4,
    updates_per_episode=2,
    target_update_every=5,
    epsilon_episodes=8,
    eval_every=5,
    eval_episodes=2,
)


def rows_of(directory: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def weights(agent: QMIX) -> bytes:
    return b"".join(parameter.detach().numpy().tobytes() for parameter in agent.learner.parameters)


@pytest.mark.parametrize("mixer", ["qmix", "vdn", "iql"])
@pytest.mark.parametrize("recurrent", [True, False])
def test_every_kind_learns_from_unequal_agents_without_a_nan(mixer: str, recurrent: bool) -> None:
    config = dataclasses.replace(SMALL, mixer=mixer, recurrent=recurrent, standardise_returns=True, exploration="team")
    rows: list[dict[str, Any]] = []
    agent = QMIX(Ragged(), config).learn(10, progress=False, callback=lambda _, row: rows.append(row))
    assert all(row["loss"] is None for row in rows[:3])
    assert all(math.isfinite(row[key]) for row in rows[3:] for key in ("loss", "q_tot", "td_error", "grad_norm"))
    assert agent.learner.updates == 14
    assert all(torch.isfinite(parameter).all() for parameter in agent.learner.parameters)


@pytest.mark.parametrize("game", [DictMasks, LeavesEarly, Meet])
def test_other_kinds_of_games_are_learned(game: Any) -> None:
    agent = QMIX(game(), SMALL).learn(7, progress=False)
    assert agent.episode == 7
    assert agent.learner.updates == 8


def test_same_seed_same_weights_and_metrics_other_seed_others(tmp_path: Path, untouched_rngs: None) -> None:
    agents = [
        QMIX(Ragged(), SMALL, seed=seed).learn(8, log_dir=tmp_path / str(index), progress=False)
        for index, seed in enumerate((3, 3, 4))
    ]
    assert weights(agents[0]) == weights(agents[1]) != weights(agents[2])
    assert rows_of(tmp_path / "0") == rows_of(tmp_path / "1") != rows_of(tmp_path / "2")


def test_a_row_tells_the_whole_episode(tmp_path: Path) -> None:
    QMIX(Ragged(), SMALL).learn(6, log_dir=tmp_path, progress=False)
    rows = rows_of(tmp_path)
    assert [row["episode"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[5]["env_steps"] == sum(row["length"] for row in rows)
    assert rows[5]["updates"] == 6
    assert rows[0]["epsilon"] == 1.0
    assert "info/team" in rows[0]
    assert "info/own" not in rows[0]
    assert [row["episode"] for row in rows if "eval/return" in row] == [5]
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_without_tensorboard_there_is_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    QMIX(TwoStep(), SMALL).learn(2, log_dir=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_agent_moves_an_old_log_aside(tmp_path: Path) -> None:
    QMIX(TwoStep(), SMALL).learn(2, log_dir=tmp_path, progress=False)
    QMIX(TwoStep(), SMALL).learn(3, log_dir=tmp_path, progress=False)
    assert len(rows_of(tmp_path)) == 3
    assert len((tmp_path / "metrics.previous.jsonl").read_text().splitlines()) == 2


def test_training_and_evaluation_never_share_a_seed() -> None:
    class Noting(TwoStep):
        def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
            seeds.append(seed)
            return super().reset(seed, options)

    seeds: list[int | None] = []
    agent = QMIX(Noting(), dataclasses.replace(SMALL, eval_every=0))
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


def test_evaluation_is_a_mean_with_its_error() -> None:
    agent = QMIX(Meet(), SMALL)
    result = agent.evaluate(episodes=4)
    assert result.mean == pytest.approx(np.mean(result.returns))
    assert result.standard_error == pytest.approx(np.std(result.returns, ddof=1) / 2)
    assert result.lengths == (5, 5, 5, 5)
    assert {name: sum(counts) for name, counts in result.action_counts.items()} == {"agent_0": 20, "agent_1": 20}
    assert math.isnan(agent.evaluate(episodes=1).standard_error)
    assert agent.evaluate(Meet(), episodes=4) == result
    with pytest.raises(ValueError, match="not the one this agent was made for"):
        agent.evaluate(TwoStep(), episodes=1)


def test_action_counts_are_of_those_who_acted() -> None:
    config = dataclasses.replace(SMALL, mixer="vdn", recurrent=False)
    agent = QMIX(LeavesEarly(), config)
    with torch.no_grad():  # the last legal action is always the best
        agent.learner.network.head.weight.zero_()
        agent.learner.network.head.bias.copy_(torch.arange(5.0))
    counts = agent.evaluate(episodes=4).action_counts
    assert [len(row) for row in counts.values()] == [3, 5, 1]
    assert [sum(row) for row in counts.values()] == [4, 12, 12]  # agent_0 leaves after the first of three steps
    assert counts["agent_2"] == (12,)
    assert counts["agent_1"][4] > 0
    assert counts["agent_0"][0] < 4


# act


def test_act_remembers_until_reset(untouched_rngs: None) -> None:
    agent = QMIX(Memory(), SMALL)
    with torch.no_grad():  # a network whose values depend on its memory alone
        agent.learner.network.head.weight.mul_(50)
    shown = {name: np.array([1.0, 0.0], np.float32) for name in agent.spec.agents}
    blank = {name: np.array([0.0, 0.3], np.float32) for name in agent.spec.agents}
    agent.act(shown, reset=True)
    hidden = agent._acting._hidden
    agent.act(blank)
    assert agent._acting._hidden is not hidden
    memory = agent._acting._hidden.clone()
    agent.act(blank, reset=True)
    assert not torch.equal(agent._acting._hidden, memory)
    agent.act(shown, reset=True)
    agent.act(blank)
    assert torch.equal(agent._acting._hidden, memory)


def test_act_plays_as_evaluate_does() -> None:
    agent, env = QMIX(Ragged(), SMALL).learn(6, progress=False), Ragged()
    for seed in range(4):
        observations, infos = env.reset(seed=seed)
        first = True
        while env.agents:
            masks = {name: infos[name]["action_mask"] for name in env.agents}
            actions = agent.act(observations, masks, reset=first, epsilon=0.5 if seed % 2 else 0.0)
            first = False
            assert set(actions) == set(env.agents)
            assert all(type(action) is int for action in actions.values())
            observations, _, _, _, infos = env.step(actions)  # raises for an illegal action


def test_act_reads_masks_beside_observations_and_skips_those_who_left() -> None:
    agent, env = QMIX(DictMasks(), SMALL), DictMasks()
    observations, _ = env.reset(seed=1)
    env.step(agent.act(observations, reset=True))
    del observations["agent_0"]
    assert set(agent.act(observations)) == {"agent_1", "agent_2"}


def test_act_refuses_what_it_does_not_know() -> None:
    agent = QMIX(TwoStep(), SMALL)
    good = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"unknown agents \['bob'\]"):
        agent.act({"bob": good})
    with pytest.raises(ValueError, match=r"agent_0.*shape"):
        agent.act({"agent_0": np.zeros(2)})
    with pytest.raises(ValueError, match=r"agent_0.*allows no action"):
        agent.act({"agent_0": good}, {"agent_0": [0, 0]})
    with pytest.raises(ValueError, match="epsilon"):
        agent.act({"agent_0": good}, epsilon=2)


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed"):
        QMIX(TwoStep(), SMALL, seed=seed)


@pytest.mark.parametrize("name", ["episodes", "checkpoint_every"])
def test_counts_are_whole_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        QMIX(TwoStep(), SMALL).learn(**{"episodes": 1, name: 0})


@pytest.mark.parametrize(("game", "level"), [(Ragged, 0.0), (TwoStep, 3.0)])
def test_learning_does_not_depend_on_the_level_and_unit_of_returns(game: type[Game], level: float) -> None:
    class Other(game):  # type: ignore[valid-type,misc]
        def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
            reward, terminated, truncated = super().play(actions)
            return reward / 128 - level * terminated, terminated, truncated  # a power of two: exact

    config = dataclasses.replace(SMALL, standardise_returns=True, gamma=1.0)
    one, two = (QMIX(one(), config).learn(8, progress=False) for one in (game, Other))
    for first, second in zip(one.learner.parameters, two.learner.parameters, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_the_return_scale_is_that_of_all_episodes() -> None:
    agent = QMIX(Ragged(), dataclasses.replace(SMALL, gamma=0.5)).learn(6, progress=False)
    expected = ReturnScale()
    for episode in agent.buffer:
        expected.add(episode.rewards, 0.5)
    assert agent.return_scale == expected
