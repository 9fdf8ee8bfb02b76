"""QMIX: the object that users hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pettingzoo import ParallelEnv

from . import checkpoint, evaluation
from .config import QMIXConfig, check_count
from .env_pool import EnvPool, OneOrMoreEnvs, wrap_envs
from .learner import Learner
from .padding import pad_action_masks, pad_observations, split_observation
from .seeding import Stream, make_generator
from .team_env import TeamEnv
from .team_policy import Interface, TeamPolicy
from .trainer import Trainer
from .types import EnvSpec, Evaluation, MetricsRow


class QMIX:
    """A team of agents that learns one value from a common reward (Rashid et al. 2018, arXiv:1803.11485).

    No global random state is read or written. Runs of equal seed are bit-identical on the same machine with the same
    number of threads.

    Args:
        env: A cooperative PettingZoo ParallelEnv with Discrete actions and one reward for all agents. Action masks are
            read from infos[agent]["action_mask"] or from Dict observations. If the environment has the methods
            `state_dict` and `load_state_dict`, its lasting state (what survives a reset) is kept in checkpoints. A list
            of such environments is played in parallel; `SubprocessEnv` gives each its own process.
        config: All settings.
        seed: Non-negative integer.
        device: Device of the networks.
        policy: A policy whose weights the agent starts from; see `TeamPolicy`.

    Raises:
        ValueError: QMIX cannot play the environment, the seed is invalid, or the policy does not fit.
        TypeError: `config` is not a QMIXConfig.

    Example:
        >>> agent = QMIX(env).learn(total_episodes=300, checkpoint_dir="run")
        >>> agent = QMIX.load("run", env).learn(total_episodes=600)  # 300 more, as if it had never stopped
        >>> actions = agent.act(observations, reset=True)
    """

    def __init__(
        self,
        env: OneOrMoreEnvs,
        config: QMIXConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        policy: TeamPolicy | None = None,
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
        if not isinstance(config, QMIXConfig | None):
            raise TypeError(f"config must be a QMIXConfig, got {config!r}; write QMIXConfig(gamma=0.99)")
        envs = wrap_envs(env)
        self._set_trainer(Trainer(EnvPool(envs, envs[0].spec), config or QMIXConfig(), int(seed), device))
        if policy is not None:
            policy.interface.require_equal(envs[0].env)
            policy.initialise(self.learner)

    def _set_trainer(self, trainer: Trainer) -> None:
        self.trainer = trainer
        """The training loop and its state."""
        self._policy = trainer.new_policy()
        self._rng = make_generator(trainer.seed, Stream.ACTING)

    @property
    def config(self) -> QMIXConfig:
        """All settings."""
        return self.trainer.config

    @property
    def seed(self) -> int:
        """Seed of all randomness."""
        return self.trainer.seed

    @property
    def spec(self) -> EnvSpec:
        """Specification of the environment."""
        return self.trainer.envs.spec

    @property
    def learner(self) -> Learner:
        """The networks and their optimizer."""
        return self.trainer.learner

    @property
    def episode(self) -> int:
        """Number of training episodes played."""
        return self.trainer.episode

    @property
    def env_steps(self) -> int:
        """Number of steps in training episodes."""
        return self.trainer.env_steps

    def learn(
        self,
        total_episodes: int,
        log_dir: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        *,
        n_envs: int | None = None,
        callback: Callable[[QMIX, MetricsRow], object] | None = None,
        progress: bool = True,
    ) -> QMIX:
        """Train until the agent has played `total_episodes` in its lifetime.

        With n_envs = K, episodes are played in rounds of K: all K act with the weights from before the round, then the
        updates of all K follow, then rows, checkpoint and callbacks. The seeds of an episode depend on its number only,
        so nothing else depends on K, and nothing depends on timing.

        Each row of metrics has the keys episode, return, length, epsilon; loss, q_tot, td_error and grad_norm (means
        over the updates of this episode, None before `learning_starts`); updates, env_steps; info/* (numbers on which
        the last infos of all agents agree); every `eval_every` episodes eval/return and eval/standard_error; and
        seconds, the only key that differs between equal runs.

        After any exception, including KeyboardInterrupt, the agent is in the state after its last complete round.

        Args:
            total_episodes: Number of episodes to reach, including those already played.
            log_dir: Directory of metrics.jsonl, one row per episode, and of TensorBoard events if tensorboard is
                installed. None writes no log.
            checkpoint_dir: Directory of checkpoints, which are written every `config.checkpoint_every` episodes, at the
                end, and at Ctrl-C. None writes no checkpoints.
            n_envs: Episodes played in parallel, with one pass of the network for all. By default the number of
                environments that the agent was given. Missing environments are copied from the first: by its clone()
                method, whose copies share lasting state, or else by copy.deepcopy.
            callback: Called as callback(agent, row) for every episode.
            progress: Show a progress bar.

        Returns:
            The agent itself.

        Raises:
            ValueError: A count is not a positive integer, or the agent was loaded without an environment.
            FloatingPointError: A loss or gradient is not finite.
            OSError: The directory of checkpoints cannot be written.
            FileExistsError: A new agent would overwrite the checkpoint of another run.
        """
        n_envs = max(1, self.trainer.envs.n_given) if n_envs is None else n_envs
        check_count("total_episodes", total_episodes)
        check_count("n_envs", n_envs)
        if checkpoint_dir is not None:  # found now, not at the first checkpoint
            Path(checkpoint_dir).mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".qmix-", dir=checkpoint_dir):
                pass
        self.trainer.train(
            total_episodes,
            log_dir=Path(log_dir) if log_dir is not None else None,
            checkpoint_dir=Path(checkpoint_dir) if checkpoint_dir is not None else None,
            n_envs=n_envs,
            on_row=(lambda row: callback(self, row)) if callback is not None else None,
            progress=progress,
        )
        return self

    def act(
        self,
        observations: Mapping[str, Any],
        action_masks: Mapping[str, Any] | None = None,
        reset: bool = False,
        epsilon: float = 0.0,
    ) -> dict[str, int]:
        """Choose an action for every agent in `observations`. Hidden states and last actions carry over between calls.

        Args:
            observations: Observations as the environment returns them. Absent agents have left the game.
            action_masks: Legal actions of each agent. By default the mask in a Dict observation, or else all actions.
            reset: Whether a new episode starts with these observations.
            epsilon: Probability of a random action.

        Returns:
            One action per agent in `observations`.

        Raises:
            ValueError: An agent is unknown, an observation or mask is invalid, or epsilon is not from 0 to 1.
        """
        unknown = [agent for agent in observations if agent not in self.spec.agents]
        if unknown:
            raise ValueError(f"observations of unknown agents {unknown}; the agents are {list(self.spec.agents)}")
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must be a number from 0 to 1, got {epsilon!r}")
        given = action_masks or {}
        masks = {agent: given.get(agent, split_observation(observations[agent])[1]) for agent in observations}
        padded, legal = pad_observations(self.spec, observations), pad_action_masks(self.spec, masks)
        if reset:
            self._policy.reset()
        actions = self._policy.act(padded[None], legal[None], [epsilon], [self._rng])[0].tolist()
        return {
            agent: action + start
            for agent, action, start in zip(self.spec.agents, actions, self.spec.action_starts, strict=True)
            if agent in observations
        }

    def evaluate(self, env: ParallelEnv[str, Any, Any] | None = None, episodes: int = 10) -> Evaluation:
        """Play greedy episodes. Every call uses the same seeds, which differ from those of training.

        Args:
            env: Another environment of the same specification; by default the agent's own.
            episodes: Number of episodes.

        Returns:
            Returns, lengths and action counts of the episodes.

        Raises:
            ValueError: The environment has another specification, or there is none.
        """
        check_count("episodes", episodes)
        team_env = self.trainer.envs.take(1)[0] if env is None else TeamEnv(env)
        self.spec.require_equal(team_env.spec)
        return evaluation.evaluate(team_env, self.trainer.new_policy(), self.seed, episodes)

    def export_onnx(self, path: str | Path) -> float:
        """Write one step of the agent network as ONNX; see `qmix_agent.export.export_onnx`."""
        from .export import export_onnx

        return export_onnx(self.learner.network, self.spec, path)

    def policy(self) -> TeamPolicy:
        """Return what the team has learned, for teams of any size in environments of the same kind.

        Raises:
            ValueError: The agent was loaded without an environment, the agents differ in their spaces, or the networks
                serve this team only (set mixer to 'pooled', agent_id to False).
        """
        env = self.trainer.envs.take(1)[0].env
        return TeamPolicy.of(self.learner, Interface.of(env))

    def save_policy(self, path: str | Path) -> Path:
        """Write `policy()` to a file that `TeamPolicy.load` reads, and return its path."""
        return self.policy().save(path)

    def save(self, directory: str | Path) -> Path:
        """Write everything that training depends on to one checkpoint file.

        The checkpoints before it are kept as checkpoint.1.pt, checkpoint.2.pt and so on, `config.keep_checkpoints` in
        total. If saving fails, nothing changes on disk.

        Args:
            directory: Directory of the checkpoints; it is created if it does not exist.

        Returns:
            Path of the new file.

        Raises:
            FloatingPointError: A weight is not finite.
            OSError: The file cannot be written, for example on a full disk.
        """
        return self.trainer.save(Path(directory))

    def checkpoint_bytes(self, episodes: int, steps: int) -> int:
        """Return about the size of a checkpoint after a number of episodes, without the state of the environment.

        Args:
            episodes: Number of episodes played.
            steps: Steps of an episode.
        """
        return self.trainer.checkpoint_bytes(episodes, steps)

    @classmethod
    def load(cls, directory: str | Path, env: OneOrMoreEnvs | None = None, device: torch.device | str = "cpu") -> QMIX:
        """Load the agent that `save` or `learn` wrote. A damaged file is skipped, with a warning, for an older one.

        Args:
            directory: Directory of the checkpoints.
            env: One environment or a list, as for `QMIX`. Without it the agent can act, but not learn.
            device: Device of the networks.

        Returns:
            The agent. Training resumes exactly where it stopped.

        Raises:
            FileNotFoundError: There is no checkpoint.
            CheckpointError: All checkpoints are damaged, or the newest undamaged one is of another version or does not
                match the environment. It is a ValueError.
        """
        envs = wrap_envs(env) if env is not None else []
        agent = cls.__new__(cls)
        agent._set_trainer(Trainer.load(Path(directory), envs, device))
        return agent

    @classmethod
    def load_or_new(
        cls,
        directory: str | Path,
        env: OneOrMoreEnvs,
        config: QMIXConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> QMIX:
        """Load the agent of a run if `directory` has a checkpoint, and make a new one otherwise.

        Args:
            directory: Directory of the checkpoints.
            env: One environment or a list.
            config: All settings.
            seed: Seed of the agent.
            device: Device of the networks.

        Raises:
            ValueError: The checkpoint has another seed or other settings; the message names them.
        """
        if not cls.checkpoint_exists(directory):
            return cls(env, config, seed, device)
        agent, own = cls.load(directory, env, device), {"seed": seed, **asdict(config or QMIXConfig())}
        loaded = {"seed": agent.seed, **asdict(agent.config)}
        changed = [f"{name}: {loaded[name]!r} there, {own[name]!r} now" for name in own if loaded[name] != own[name]]
        if changed:
            raise ValueError(
                f"{directory} holds the checkpoint of another run ({'; '.join(changed)}); put back the right one, or "
                "delete the folder to start again"
            )
        return agent

    @staticmethod
    def checkpoint_exists(directory: str | Path) -> bool:
        """Return whether `load` would find a file."""
        return bool(checkpoint.list_files(Path(directory)))
