"""The training loop: play, learn, evaluate, log, checkpoint."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import checkpoint
from .checkpoint import CheckpointError
from .config import QMIXConfig
from .env_pool import EnvPool
from .evaluation import evaluate
from .exploration import epsilon_at
from .learner import Learner, UpdateMetrics, check_shapes
from .metrics import WALL_CLOCK, MetricsLog, restore, to_line
from .planning import Planner, ScriptedPolicy
from .policy import EpsilonGreedyPolicy
from .replay_buffer import ReplayBuffer, episodes_to_tensors, make_batch, tensors_to_episodes
from .return_scale import ReturnScale
from .rollout import EpisodeSettings, PlayedEpisode, play_episodes
from .seeding import Stream, make_generator, make_seed
from .subprocess_env import EnvProcessError
from .team_env import TeamEnv
from .types import EnvSpec, MetricsRow

ROW_BYTES = 500
"""About the length of a row of metrics."""


class Trainer:
    """Trains one agent and owns everything that training changes.

    Training proceeds in rounds. In a round, each environment plays one episode with the weights from before the round;
    then the learner updates after each of these episodes in turn. A round counts wholly or not at all: after any
    exception, the trainer is in the state after its last complete round.

    Args:
        envs: The environments.
        config: Settings.
        seed: Seed of all randomness.
        device: Device of the networks.
    """

    def __init__(self, envs: EnvPool, config: QMIXConfig, seed: int, device: torch.device | str) -> None:
        self.envs, self.config, self.seed = envs, config, seed
        self.learner = Learner(envs.spec, config, seed, device)
        self.buffer = ReplayBuffer(config.buffer_size)
        self.return_scale = ReturnScale()
        self._planners: list[Planner] = []
        if config.imagined_episodes:
            for env in envs.take(envs.n_given):
                env.imagine()  # an environment that cannot do it is refused before anything is played
        self.episode = 0
        """Training episodes played."""
        self.env_steps = 0
        """Steps in training episodes."""
        self.rows: list[str] = []
        """The metrics of all training episodes, as lines of JSON. Checkpoints contain them, so no log can be lost."""

    def new_policy(self) -> EpsilonGreedyPolicy:
        """Return a policy that acts with the learner's network and has its own hidden states."""
        return EpsilonGreedyPolicy(self.learner.network, self.learner.device)

    def train(
        self,
        total_episodes: int,
        *,
        log_dir: Path | None = None,
        checkpoint_dir: Path | None = None,
        n_envs: int = 1,
        on_row: Callable[[MetricsRow], object] | None = None,
        progress: bool = False,
    ) -> None:
        """Train until `total_episodes` have been played in total; see `QMIX.learn`.

        Args:
            total_episodes: Number of episodes to reach, including those already played.
            log_dir: Directory of the metrics log.
            checkpoint_dir: Directory of checkpoints.
            n_envs: Episodes per round.
            on_row: Called with each row of metrics after its round is logged and checkpointed.
            progress: Show a progress bar.
        """
        envs = self.envs.take(n_envs)
        if checkpoint_dir is not None and self.episode == 0 and checkpoint.list_files(checkpoint_dir):
            raise FileExistsError(
                f"{checkpoint_dir} holds the checkpoint of an earlier run, but this agent is new; resume that run with "
                "QMIX.load, or choose another checkpoint_dir"
            )
        if log_dir is not None:
            restore(log_dir, self.rows)  # of a new agent, it moves the log of an earlier run
        if self.episode >= total_episodes:
            return
        last_round = self.state_dict()
        log = MetricsLog(log_dir, self.episode) if log_dir is not None else None
        seconds = 1 if sys.stderr.isatty() else 60  # a log file gets a line a minute
        appearance = {"unit": "episode", "dynamic_ncols": True, "mininterval": seconds, "maxinterval": max(10, seconds)}
        bar = tqdm(total=total_episodes, initial=self.episode, disable=not progress, **appearance)
        try:
            while self.episode < total_episodes:
                rows = self._train_round(envs, total_episodes)
                self.rows += map(to_line, rows)
                if log is not None:
                    log.write(rows)
                last_round = self.state_dict()
                if checkpoint_dir is not None and self._checkpoint_is_due(len(rows), total_episodes):
                    if log is not None:
                        log.sync()
                    self.save(checkpoint_dir)
                _advance(bar, rows)
                if on_row is not None:
                    for row in rows:
                        on_row(row)
        except BaseException as error:
            with suppress(EnvProcessError):  # a dead process cannot restore its state; `error` reports it
                self.load_state_dict(last_round)
            if checkpoint_dir is not None and isinstance(error, KeyboardInterrupt):
                self.save(checkpoint_dir)
            raise
        finally:
            bar.close()
            if log is not None:
                log.close()

    def save(self, directory: Path) -> Path:
        """Write a checkpoint; see `QMIX.save`."""
        self.learner.require_finite()
        state = self.state_dict()
        content = {
            "spec": dataclasses.asdict(self.envs.spec),
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
            **state,
            "buffer": episodes_to_tensors(state["buffer"]),
            "rows": "\n".join(self.rows),
        }
        return checkpoint.write(directory, content, self.config.keep_checkpoints)

    def checkpoint_bytes(self, episodes: int, steps: int) -> int:
        """Return about the size of a checkpoint; see `QMIX.checkpoint_bytes`."""
        spec = self.envs.spec
        weights = 4 * sum(one.nbytes for one in self.learner.parameters)  # their targets, and two moments of Adam
        moment = 4 * spec.n_agents * spec.max_observation + 4 * spec.n_state + spec.n_agents * spec.max_actions
        episode = (steps + 1) * moment + steps * 8 * (spec.n_agents + 1)
        return weights + min(episodes, self.config.buffer_size) * episode + episodes * ROW_BYTES

    @classmethod
    def load(cls, directory: Path, envs: Sequence[TeamEnv], device: torch.device | str) -> Trainer:
        """Load the newest undamaged checkpoint; see `QMIX.load`."""
        path, content = checkpoint.read_newest(directory)
        try:
            pool, config = EnvPool(envs, EnvSpec.from_dict(content["spec"])), QMIXConfig(**content["config"])
            check_shapes(pool.spec, config, content["learner"])
            trainer = cls(pool, config, content["seed"], device)
            trainer.load_state_dict(
                {
                    **content,
                    "buffer": tensors_to_episodes(content["buffer"]),
                    "rows": content["rows"].splitlines(),
                }
            )
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
            raise CheckpointError(f"cannot use {path}: {error}") from error
        return trainer

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that training changes. The episodes themselves are shared: they never change."""
        return {
            "episode": self.episode,
            "env_steps": self.env_steps,
            "return_scale": dataclasses.asdict(self.return_scale),
            "learner": self.learner.state_dict(),
            "buffer": list(self.buffer),
            "rows": list(self.rows),
            "envs": self.envs.state_dicts(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict` of the same configuration and specification."""
        self.learner.load_state_dict(state["learner"])
        self.buffer = ReplayBuffer(self.config.buffer_size, state["buffer"])
        self.return_scale = ReturnScale(**state["return_scale"])
        self.episode, self.env_steps = state["episode"], state["env_steps"]
        self.rows = list(state["rows"])
        self.envs.load_state_dicts(state["envs"])

    def _train_round(self, envs: Sequence[TeamEnv], total_episodes: int) -> list[MetricsRow]:
        """Play one episode in each environment, then learn after each episode. Return one row per episode."""
        # A round ends at a multiple of len(envs), wherever it starts, so that a resumed run has the same rounds.
        count = min(len(envs) - self.episode % len(envs), total_episodes - self.episode)
        started = time.perf_counter()
        settings = [self._episode_settings(number) for number in range(self.episode, self.episode + count)]
        if self.config.imagined_episodes and self.learner.updates:
            played = self._play_planned(envs[:count], settings)
        else:
            played = play_episodes(envs[:count], self.new_policy(), settings)
        seconds = (time.perf_counter() - started) / count
        return [self._learn_from(one, seconds) for one in played]

    def _play_planned(self, envs: Sequence[TeamEnv], settings: Sequence[EpisodeSettings]) -> list[PlayedEpisode]:
        """Play the best imagined episode in each environment."""
        for env in envs[len(self._planners) :]:
            self._planners.append(Planner(env, self.config.imagined_episodes))
        first, planned, policy = [], [], self.new_policy()
        for index, (env, planner, one) in enumerate(zip(envs, self._planners, settings, strict=False)):
            first.append(env.reset(one.seed))
            rng = make_generator(self.seed, Stream.PLANNING, self.episode + index)
            planned.append(planner.plan(self.learner, policy, one.seed, rng))
        settings = [replace(one, epsilon=plan.epsilon) for one, plan in zip(settings, planned, strict=True)]
        return play_episodes(envs, ScriptedPolicy([plan.actions for plan in planned]), settings, first)

    def _episode_settings(self, number: int) -> EpisodeSettings:
        return EpisodeSettings(
            seed=make_seed(self.seed, Stream.TRAINING, number),
            epsilon=epsilon_at(self.config, number),
            rng=make_generator(self.seed, Stream.EXPLORATION, number),
        )

    def _learn_from(self, played: PlayedEpisode, playing_seconds: float) -> MetricsRow:
        """Add an episode to the buffer, learn, and evaluate if it is due. Return the episode's metrics."""
        started, config, episode = time.perf_counter(), self.config, played.episode
        self.buffer.add(episode)
        self.return_scale.add(episode.rewards, config.gamma)
        self.episode += 1
        self.env_steps += len(episode)
        row: MetricsRow = {
            "episode": self.episode,
            "return": episode.total_reward,
            "length": len(episode),
            "epsilon": played.epsilon,
            **self._update(),
            "updates": self.learner.updates,
            "env_steps": self.env_steps,
            **{f"info/{key}": value for key, value in played.info_scalars.items()},
        }
        if config.eval_every and self.episode % config.eval_every == 0:
            evaluation = evaluate(self.envs.take(1)[0], self.new_policy(), self.seed, config.eval_episodes)
            row |= {"eval/return": evaluation.mean, "eval/standard_error": evaluation.standard_error}
        return row | {WALL_CLOCK: playing_seconds + time.perf_counter() - started}

    def _update(self) -> dict[str, float | None]:
        """Run the updates of one episode and return their mean metrics; None before learning starts."""
        config, learner = self.config, self.learner
        if self.episode < config.learning_starts:
            return {field.name: None for field in dataclasses.fields(UpdateMetrics)}
        scale = self.return_scale if config.standardise_returns else None
        metrics = []
        for _ in range(config.updates_per_episode):
            rng = make_generator(self.seed, Stream.REPLAY, learner.updates)
            batch = make_batch(self.buffer.sample(config.batch_size, rng), learner.device)
            metrics.append(learner.update(batch, scale))
        return dataclasses.asdict(UpdateMetrics.mean(metrics))

    def _checkpoint_is_due(self, played: int, total_episodes: int) -> bool:
        """Whether the last round, of `played` episodes, passed a multiple of `checkpoint_every` or was the last."""
        every = self.config.checkpoint_every
        return (self.episode - played) // every < self.episode // every or self.episode == total_episodes


def _advance(bar: tqdm, rows: Sequence[MetricsRow]) -> None:
    """Count the episodes of a round and show the last one's return and epsilon."""
    postfix = {"return": f"{rows[-1]['return']:.3f}", "epsilon": f"{rows[-1]['epsilon']:.2f}"}
    bar.set_postfix(postfix, refresh=False)
    bar.update(len(rows))
