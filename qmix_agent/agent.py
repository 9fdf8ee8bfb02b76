"""QMIX: the one object that users hold."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pettingzoo import ParallelEnv

from . import checkpoint, trainer
from .checkpoint import CheckpointError
from .config import QMIXConfig
from .learner import Learner
from .padding import pad_masks, pad_observations, split
from .replay_buffer import ReplayBuffer, from_tensors, to_tensors
from .reward_scale import RewardScale
from .rollout import Team, TeamEnv, play_episode
from .seeding import Stream, generator, integer
from .types import EnvSpec, Evaluation, Metrics, SpaceSpec


class QMIX:
    """A team of agents that learns one value from one reward (Rashid et al. 2018, arXiv:1803.11485).

        agent = QMIX(env).learn(episodes=300, checkpoint_dir="run")
        agent = QMIX.load("run", env).learn(episodes=600)  # 300 more, as if it had never stopped
        actions = agent.act(observations, reset=True)

    env     a cooperative PettingZoo ParallelEnv: Discrete actions, one reward for all. Action masks are read from
            infos[agent]["action_mask"] or from Dict observations. With `state_dict` and `load_state_dict` methods, its
            lasting state (not that of a running episode) is kept in checkpoints
    config  all settings
    seed    whole number, not negative; equal seeds give equal runs, to the bit, on the same machine and thread count
    device  of the networks

    No global random state is read or written. Raises ValueError for an environment that QMIX cannot play.
    """

    def __init__(
        self,
        env: ParallelEnv[str, Any, Any],
        config: QMIXConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be a whole number that is not negative, got {seed!r}")
        env_view = TeamEnv(env)
        self._set_up(env_view.spec, config or QMIXConfig(), int(seed), device, env_view)

    def _set_up(
        self, spec: EnvSpec, config: QMIXConfig, seed: int, device: torch.device | str, env: TeamEnv | None
    ) -> None:
        self.spec, self.config, self.seed, self._env = spec, config, seed, env
        self.learner = Learner(spec, config, seed, device)
        self.buffer = ReplayBuffer(config.buffer_size)
        self.reward_scale = RewardScale()
        self.episode = 0
        """Training episodes played."""
        self.env_steps = 0
        """Steps in training episodes."""
        self._env_state: Any = None  # of a checkpoint loaded without its environment, passed on when saved again
        self._acting = self.new_team()
        self._acting_rng = generator(seed, Stream.ACTING)

    def learn(
        self,
        episodes: int,
        log_dir: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int = 50,
        progress: bool = True,
        callback: Callable[[QMIX, Metrics], object] | None = None,
    ) -> QMIX:
        """Trains until the agent has played `episodes` episodes in its life, and returns itself.

        log_dir           gets metrics.jsonl, one row an episode, and TensorBoard events if tensorboard is installed
        checkpoint_dir    gets a checkpoint every `checkpoint_every` episodes, at the end, and at Ctrl-C
        callback          called with the agent and the row of metrics after every episode

        Rows: episode, return, length, epsilon; loss, q_tot, td_error, grad_norm (means of this episode's updates, None
        before `learning_starts`); updates, env_steps; info/* (numbers that all agents' last infos agree on);
        eval/return, eval/standard_error (every `eval_every` episodes); and seconds, all that two equal runs differ in.

        Whatever is raised, KeyboardInterrupt too, the agent is then as after its last whole episode. Raises
        FloatingPointError when a loss or gradient is not finite, and FileExistsError when a new agent would overwrite
        the checkpoint of another run.
        """
        for name, value in (("episodes", episodes), ("checkpoint_every", checkpoint_every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        trainer.learn(
            self,
            episodes,
            Path(log_dir) if log_dir is not None else None,
            Path(checkpoint_dir) if checkpoint_dir is not None else None,
            checkpoint_every,
            progress,
            callback,
        )
        return self

    def act(
        self,
        observations: Mapping[str, Any],
        action_masks: Mapping[str, Any] | None = None,
        reset: bool = False,
        epsilon: float = 0.0,
    ) -> dict[str, int]:
        """An action for every agent in `observations`. Memories and last actions are kept from call to call.

        observations  as the environment gives them; agents left out have left the game
        action_masks  legal actions of each agent; without one, the mask in a Dict observation, or all actions
        reset         a new episode starts with these observations
        epsilon       probability of exploring
        """
        unknown = [agent for agent in observations if agent not in self.spec.agents]
        if unknown:
            raise ValueError(f"observations of unknown agents {unknown}; the agents are {list(self.spec.agents)}")
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must be a number from 0 to 1, got {epsilon!r}")
        given = action_masks or {}
        masks = {agent: given.get(agent, split(observations[agent])[1]) for agent in observations}
        seen, legal = pad_observations(self.spec, observations), pad_masks(self.spec, masks)
        if reset:
            self._acting.reset()
        actions = self._acting.act(seen, legal, epsilon, self._acting_rng)
        return {
            agent: int(action) + start
            for agent, action, start in zip(self.spec.agents, actions, self.spec.action_starts, strict=True)
            if agent in observations
        }

    def evaluate(self, env: ParallelEnv[str, Any, Any] | None = None, episodes: int = 10) -> Evaluation:
        """Returns of greedy episodes; always on the same seeds, none of which training sees.

        env  another environment than the agent's own, of the same specification
        """
        if isinstance(episodes, bool) or not isinstance(episodes, int) or episodes < 1:
            raise ValueError(f"episodes must be a whole number of at least 1, got {episodes!r}")
        env_view = self.team_env if env is None else TeamEnv(env)
        _check_same(self.spec, env_view.spec)
        team, rng = self.new_team(), generator(self.seed, Stream.ACTING)
        played = [
            play_episode(env_view, team, 0.0, integer(self.seed, Stream.EVALUATION, index), rng)[0]
            for index in range(episodes)
        ]
        returns = [episode.total_reward for episode in played]
        error = float(np.std(returns, ddof=1)) / math.sqrt(episodes) if episodes > 1 else math.nan
        return Evaluation(float(np.mean(returns)), error, tuple(returns), tuple(len(episode) for episode in played))

    def save(self, directory: str | Path) -> Path:
        """Writes everything that learning goes on from to one file in `directory`, and returns its path."""
        state = self.state_dict()
        state["buffer"] = to_tensors(state["buffer"])
        path = Path(directory) / checkpoint.FILE_NAME
        checkpoint.write(path, state)
        return path

    @classmethod
    def load(
        cls, directory: str | Path, env: ParallelEnv[str, Any, Any] | None = None, device: torch.device | str = "cpu"
    ) -> QMIX:
        """The agent that `save` or `learn` left in `directory`. Without `env` it can act, but not learn.

        Raises FileNotFoundError, or CheckpointError (a ValueError) for a damaged file, another version, or an `env` of
        another specification.
        """
        path = Path(directory) / checkpoint.FILE_NAME
        state = checkpoint.read(path)
        env_view = TeamEnv(env) if env is not None else None
        agent = cls.__new__(cls)
        try:
            saved = state["spec"]
            spec = EnvSpec(**{**saved, "observations": tuple(SpaceSpec(**space) for space in saved["observations"])})
            if env_view is not None:
                _check_same(spec, env_view.spec)
            agent._set_up(spec, QMIXConfig(**state["config"]), state["seed"], device, env_view)
            agent.load_state_dict({**state, "buffer": from_tensors(state["buffer"])})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be used: {error}") from error
        return agent

    @staticmethod
    def checkpoint_exists(directory: str | Path) -> bool:
        """Whether `load` would find a file."""
        return (Path(directory) / checkpoint.FILE_NAME).is_file()

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that learning goes on from. Episodes in `buffer` are shared, as nothing ever changes them."""
        return {
            "spec": dataclasses.asdict(self.spec),
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
            "episode": self.episode,
            "env_steps": self.env_steps,
            "reward_scale": dataclasses.asdict(self.reward_scale),
            "learner": self.learner.state_dict(),
            "buffer": list(self.buffer),
            "env": self._env_state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a `state_dict` of the same configuration and specification."""
        self.learner.load_state_dict(state["learner"])
        self.buffer = ReplayBuffer(self.config.buffer_size, state["buffer"])
        self.reward_scale = RewardScale(**state["reward_scale"])
        self.episode, self.env_steps = state["episode"], state["env_steps"]
        self._env_state = state["env"]
        if self._env is None or state["env"] is None:
            return
        if not _has_state(self._env.env):
            warnings.warn(
                f"the checkpoint holds the environment's lasting state, but {type(self._env.env).__name__} has no "
                "load_state_dict(); it starts afresh",
                stacklevel=2,
            )
            return
        self._env.env.load_state_dict(checkpoint.decode(state["env"]))

    @property
    def team_env(self) -> TeamEnv:
        """The agent's environment. Raises ValueError if it was loaded without one."""
        if self._env is None:
            raise ValueError("this agent was loaded without an environment and can only act; use QMIX.load(dir, env)")
        return self._env

    def new_team(self) -> Team:
        """Actors with the present weights and memories of their own."""
        return Team(self.learner.network, self.spec, self.config.exploration, self.learner.device)

    def _env_state_dict(self) -> Any:
        if self._env is None:
            return self._env_state
        return checkpoint.encode(self._env.env.state_dict()) if _has_state(self._env.env) else None


def _check_same(ours: EnvSpec, theirs: EnvSpec) -> None:
    differences = theirs.differences(ours)
    if differences:
        told = "; ".join(differences)
        raise ValueError(f"the environment is not the one this agent was made for (environment against agent): {told}")


def _has_state(env: Any) -> bool:
    return callable(getattr(env, "state_dict", None)) and callable(getattr(env, "load_state_dict", None))
