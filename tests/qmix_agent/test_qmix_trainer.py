"""The training loop: reproducible runs, complete rows, rounds, exact resumption, and a valid state after any error."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from games import Archiving, DictMasks, Game, LeavesEarly, Meet, Outcome, Ragged, TwoStep
from qmix_helpers import SMALL, archived_lengths, equal_episodes, rows_of, weights

from qmix_agent import QMIX, checkpoint
from qmix_agent.return_scale import ReturnScale

CONFIG = dataclasses.replace(SMALL, standardise_returns=True, buffer_size=10)

# Learning


@pytest.mark.parametrize("mixer", ["qmix", "vdn", "iql"])
@pytest.mark.parametrize("recurrent", [True, False])
def test_all_mixers_and_networks_learn_from_unequal_agents(mixer: Any, recurrent: bool) -> None:
    config = dataclasses.replace(SMALL, mixer=mixer, recurrent=recurrent, standardise_returns=True)
    rows: list[dict[str, Any]] = []
    agent = QMIX(Ragged(), config).learn(10, progress=False, callback=lambda _, row: rows.append(row))
    assert all(row["loss"] is None for row in rows[:3])
    assert all(math.isfinite(row[key]) for row in rows[3:] for key in ("loss", "q_tot", "td_error", "grad_norm"))
    assert agent.learner.updates == 14
    assert all(torch.isfinite(parameter).all() for parameter in agent.learner.parameters)


@pytest.mark.parametrize("game", [DictMasks, LeavesEarly, Meet])
def test_all_kinds_of_games_are_learned(game: Any) -> None:
    agent = QMIX(game(), SMALL).learn(7, progress=False)
    assert agent.episode == 7
    assert agent.learner.updates == 8


def test_equal_seeds_give_equal_runs_and_other_seeds_do_not(tmp_path: Path, untouched_rngs: None) -> None:
    agents = [
        QMIX(Ragged(), SMALL, seed=seed).learn(8, log_dir=tmp_path / str(index), progress=False)
        for index, seed in enumerate((3, 3, 4))
    ]
    assert weights(agents[0]) == weights(agents[1]) != weights(agents[2])
    assert rows_of(tmp_path / "0") == rows_of(tmp_path / "1") != rows_of(tmp_path / "2")


def test_a_row_describes_the_whole_episode(tmp_path: Path) -> None:
    QMIX(Ragged(), SMALL).learn(6, log_dir=tmp_path, progress=False)
    rows = rows_of(tmp_path)
    assert [row["episode"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[5]["env_steps"] == sum(row["length"] for row in rows)
    assert rows[5]["updates"] == 6
    assert rows[0]["epsilon"] == 1.0
    assert "info/team" in rows[0]
    assert "info/own" not in rows[0]
    assert [row["episode"] for row in rows if "eval/return" in row] == [5]


@pytest.mark.parametrize(("game", "level"), [(Ragged, 0.0), (TwoStep, 3.0)])
def test_with_standardised_returns_learning_ignores_their_level_and_unit(game: type[Game], level: float) -> None:
    class Rescaled(game):  # type: ignore[valid-type,misc]
        def transition(self, actions: dict[str, int]) -> Outcome:
            outcome = super().transition(actions)
            reward = outcome.reward / 128 - level * outcome.terminated  # a power of two is exact
            return dataclasses.replace(outcome, reward=reward)

    config = dataclasses.replace(SMALL, standardise_returns=True, gamma=1.0)
    one, two = (QMIX(env(), config).learn(8, progress=False) for env in (game, Rescaled))
    for first, second in zip(one.learner.parameters, two.learner.parameters, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_the_return_scale_covers_all_episodes() -> None:
    trainer = QMIX(Ragged(), dataclasses.replace(SMALL, gamma=0.5)).learn(6, progress=False).trainer
    expected = ReturnScale()
    for episode in trainer.buffer:
        expected.add(episode.rewards, 0.5)
    assert trainer.return_scale == expected


# Rounds and checkpoints


def test_checkpoints_and_callbacks_follow_each_round(tmp_path: Path) -> None:
    called: list[tuple[int, int]] = []
    saved: set[int] = set()

    def callback(agent: QMIX, row: dict[str, Any]) -> None:
        called.append((row["episode"], agent.episode))
        if QMIX.checkpoint_exists(tmp_path):
            saved.add(QMIX.load(tmp_path).episode)

    config = dataclasses.replace(SMALL, checkpoint_every=3)
    QMIX(Ragged(), config).learn(10, checkpoint_dir=tmp_path, n_envs=4, callback=callback, progress=False)
    assert [row for row, _ in called] == list(range(1, 11))
    assert [agent for _, agent in called] == [4] * 4 + [8] * 4 + [10] * 2
    assert saved == {4, 8, 10}  # 3, 6 and 9 are within rounds


def test_checkpoints_are_written_when_due_and_at_the_end(tmp_path: Path) -> None:
    saved: list[int] = []

    def look(_: QMIX, row: dict[str, Any]) -> None:
        if QMIX.checkpoint_exists(tmp_path):
            saved.append(QMIX.load(tmp_path).episode)

    config = dataclasses.replace(SMALL, checkpoint_every=2)
    QMIX(TwoStep(), config).learn(5, checkpoint_dir=tmp_path, progress=False, callback=look)
    assert saved == [2, 2, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.1.pt", checkpoint.FILE_NAME]


def test_a_new_agent_does_not_overwrite_the_checkpoint_of_a_run(tmp_path: Path) -> None:
    QMIX(TwoStep(), SMALL).learn(2, checkpoint_dir=tmp_path, progress=False)
    with pytest.raises(FileExistsError, match=str(tmp_path)):
        QMIX(TwoStep(), SMALL).learn(2, checkpoint_dir=tmp_path, progress=False)


# Resumption


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, checkpoint_every=7)
    straight = QMIX(Archiving(), config, seed=5).learn(16, log_dir=tmp_path / "a", progress=False)
    QMIX(Archiving(), config, seed=5).learn(9, tmp_path / "b", tmp_path / "b", progress=False)
    agent = QMIX.load(tmp_path / "b", Archiving())
    assert agent.episode == 9
    agent.learn(16, tmp_path / "b", tmp_path / "b", progress=False)
    assert weights(agent) == weights(straight)
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    assert archived_lengths(agent) == archived_lengths(straight)
    assert agent.trainer.return_scale == straight.trainer.return_scale
    assert all(map(equal_episodes, agent.trainer.buffer, straight.trainer.buffer))


@pytest.mark.parametrize("settings", [{"parameter_sharing": False}, {"standardise_returns": True}])
def test_a_resumed_run_equals_an_uninterrupted_one_with_several_environments(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Archiving has no clone(), so each deep copy has its own lasting state, and all of them are restored."""
    config = dataclasses.replace(SMALL, buffer_size=10, **settings)
    straight = QMIX(Archiving(), config, seed=5).learn(14, log_dir=tmp_path / "a", n_envs=4, progress=False)
    QMIX(Archiving(), config, seed=5).learn(8, tmp_path / "b", tmp_path / "b", n_envs=4, progress=False)
    agent = QMIX.load(tmp_path / "b", Archiving()).learn(14, log_dir=tmp_path / "b", n_envs=4, progress=False)
    assert weights(agent) == weights(straight)
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    lengths = archived_lengths(agent, 4)
    assert lengths == archived_lengths(straight, 4)
    assert [len(one) for one in lengths] == [4 + 4, 4, 3, 3]  # the first also plays two evaluations of two episodes


# Errors


class InterruptsReset(Archiving):
    """Raises KeyboardInterrupt in the reset with this number; the first reset reads the specification."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.resets = number, 0

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.resets += 1
        if self.resets == self.number:
            raise KeyboardInterrupt
        return super().reset(seed, options)


class InterruptsStep(Archiving):
    """Raises KeyboardInterrupt after the step with this number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.steps = number, 0

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        result = super().step(actions)
        self.steps += 1
        if self.steps == self.number:
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize("where", ["step", "update", "evaluation"])
def test_ctrl_c_leaves_the_state_after_the_last_complete_episode(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = QMIX(Archiving(), CONFIG, seed=5).learn(14, log_dir=tmp_path / "a", progress=False)
    # Reset 15 belongs to the second evaluation: 1 for the specification, 10 for training, 2 + 2 for evaluations.
    env = {"step": InterruptsStep(30), "update": Archiving(), "evaluation": InterruptsReset(15)}[where]
    agent = QMIX(env, CONFIG, seed=5)
    if where == "update":
        step, calls = agent.learner.optimizer.step, 0

        def interrupted_step() -> None:
            nonlocal calls
            calls += 1
            step()
            if calls == 11:
                raise KeyboardInterrupt

        monkeypatch.setattr(agent.learner.optimizer, "step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(14, tmp_path / "b", tmp_path / "b", progress=False)
    stopped = agent.episode
    assert 0 < stopped < 14
    if where == "evaluation":
        assert stopped == 9
    resumed = QMIX.load(tmp_path / "b", Archiving())
    assert resumed.episode == stopped
    resumed.learn(14, log_dir=tmp_path / "b", progress=False)
    agent.learn(14, progress=False)  # the interrupted object itself can continue, too
    assert weights(agent) == weights(resumed) == weights(straight)
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    assert archived_lengths(agent) == archived_lengths(straight)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_valid_checkpoint(tmp_path: Path) -> None:
    class Explodes(Ragged):
        episodes = 0

        def start_episode(self) -> None:
            super().start_episode()
            Explodes.episodes += 1

        def transition(self, actions: dict[str, int]) -> Outcome:
            outcome = super().transition(actions)
            return dataclasses.replace(outcome, reward=1e38) if Explodes.episodes > 7 else outcome

    config = dataclasses.replace(SMALL, eval_every=0, loss="mse", batch_size=10, checkpoint_every=2)
    agent = QMIX(Explodes(), config)
    with pytest.raises(FloatingPointError, match=r"loss.*inf"):
        agent.learn(20, checkpoint_dir=tmp_path, progress=False)
    loaded = QMIX.load(tmp_path)
    assert loaded.episode == 6
    assert all(torch.isfinite(parameter).all() for parameter in loaded.learner.parameters)


def test_after_one_of_several_environments_failed_training_can_continue() -> None:
    class FailsOnce(Ragged):
        failed = False

        def transition(self, actions: dict[str, int]) -> Outcome:
            if not FailsOnce.failed and self.time == 2:
                FailsOnce.failed = True
                raise RuntimeError("once")
            return super().transition(actions)

    class Async(Ragged):
        def step_async(self, actions: dict[str, int]) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            return super().step(self.actions)

    agent = QMIX([FailsOnce(), Async(), Async()], SMALL, seed=2)
    with pytest.raises(RuntimeError, match="once"):
        agent.learn(6, progress=False)
    assert agent.episode == 0
    straight = QMIX(Ragged(), SMALL, seed=2).learn(6, n_envs=3, progress=False)
    assert weights(agent.learn(6, progress=False)) == weights(straight)


def test_an_error_in_the_callback_keeps_the_round() -> None:
    def fail(_: QMIX, row: dict[str, Any]) -> None:
        if row["episode"] == 6:
            raise RuntimeError("callback")

    agent = QMIX(Ragged(), SMALL, seed=2)
    with pytest.raises(RuntimeError, match="callback"):
        agent.learn(9, callback=fail, progress=False)
    assert agent.episode == 6
    straight = QMIX(Ragged(), SMALL, seed=2).learn(9, progress=False)
    assert weights(agent.learn(9, progress=False)) == weights(straight)


def test_state_dicts_do_not_change_with_the_trainer() -> None:
    trainer = QMIX(Ragged(), SMALL).learn(5, progress=False).trainer
    state = trainer.state_dict()
    before = state["learner"]["network"]["head.weight"].clone()
    trainer.train(8)
    assert torch.equal(state["learner"]["network"]["head.weight"], before)
    assert state["episode"] == len(state["buffer"]) == 5
    trainer.load_state_dict(state)
    assert trainer.episode == 5
    assert np.array_equal(trainer.learner.network.head.weight.detach().numpy(), before.numpy())
