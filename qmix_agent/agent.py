"""QMIX: the one object that users hold."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from pettingzoo import ParallelEnv

from . import checkpoint, trainer
from .checkpoint import CheckpointError
from .config import QMIXConfig
from .learner import Learner
from .padding import pad_masks, pad_observations, split
from .replay_buffer import ReplayBuffer, from_tensors, to_tensors
from .return_scale import ReturnScale
from .rollout import Start, Team, play_episodes
from .seeding import Stream, generator, integer
from .team_env import TeamEnv
from .types import EnvSpec, Evaluation, Metrics, SpaceSpec

AnyEnvs: TypeAlias = ParallelEnv[str, Any, Any] | Sequence[ParallelEnv[str, Any, Any]]


class QMIX:
    """A team of agents that learns one value from one reward (Rashid et al. 2018, arXiv:1803.11485).

        agent = QMIX(env).learn(episodes=300, checkpoint_dir="run")
        agent = QMIX.load("run", env).learn(episodes=600)  # 300 more, as if it had never stopped
        actions = agent.act(observations, reset=True)

    env     a cooperative PettingZoo ParallelEnv: Discrete actions, one reward for all. Action masks are read from
            infos[agent]["action_mask"] or from Dict observations. With `state_dict` and `load_state_dict` methods, its
            lasting state (not that of a running episode) is kept in checkpoints. Or a list of such environments,
            which then play side by side; `SubprocessEnv` gives each its own process
    config  all settings
    seed    whole number, not negative; equal seeds give equal runs, to the bit, on the same machine and thread count
    device  of the networks

    No global random state is read or written. Raises ValueError for an environment that QMIX cannot play.
    """

    def __init__(
        self,
        env: AnyEnvs,
        config: QMIXConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be a whole number that is not negative, got {seed!r}")
        if not isinstance(config, QMIXConfig | None):
            raise TypeError(f"config must be a QMIXConfig, got {config!r}; write QMIXConfig(gamma=0.99)")
        envs = _team_envs(env)
        self._set_up(envs[0].spec, config or QMIXConfig(), int(seed), device, envs)

    def _set_up(
        self, spec: EnvSpec, config: QMIXConfig, seed: int, device: torch.device | str, envs: list[TeamEnv]
    ) -> None:
        self.spec, self.config, self.seed, self._envs, self._n_given = spec, config, seed, envs, len(envs)
        self.learner = Learner(spec, config, seed, device)
        self.buffer = ReplayBuffer(config.buffer_size)
        self.return_scale = ReturnScale()
        self.episode = 0
        """Training episodes played."""
        self.env_steps = 0
        """Steps in training episodes."""
        self._env_states: list[Any] = []  # of a checkpoint, for environments that are not there (yet)
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
        keep_checkpoints: int = 2,
        n_envs: int | None = None,
    ) -> QMIX:
        """Trains until the agent has played `episodes` episodes in its life, and returns itself.

        log_dir           gets metrics.jsonl, one row an episode, and TensorBoard events if tensorboard is installed
        checkpoint_dir    gets a checkpoint every `checkpoint_every` episodes, at the end, and at Ctrl-C
        callback          called with the agent and the row of metrics after every episode
        keep_checkpoints  how many of the last checkpoints stay
        n_envs            episodes played side by side, with one pass of the network for all; as many as the agent has
                          environments if None. Missing ones are copied from the first: by its clone() method, whose
                          copies share what lasts from episode to episode, else by copy.deepcopy

        With n_envs = K, episodes come in rounds of K: all K act by the weights before the round, then the updates of
        all K follow, then rows, checkpoint and callbacks. Each episode's seeds are its number's, so nothing else
        depends on K, and nothing on timing.

        Rows: episode, return, length, epsilon; loss, q_tot, td_error, grad_norm (means of this episode's updates, None
        before `learning_starts`); updates, env_steps; info/* (numbers that all agents' last infos agree on);
        eval/return, eval/standard_error (every `eval_every` episodes); and seconds, all that two equal runs differ in.

        Whatever is raised, KeyboardInterrupt too, the agent is then as after its last whole round of episodes. Raises
        FloatingPointError when a loss or gradient is not finite, and FileExistsError when a new agent would overwrite
        the checkpoint of another run.
        """
        n_envs = max(1, self._n_given) if n_envs is None else n_envs
        counts = {"episodes": episodes, "checkpoint_every": checkpoint_every, "n_envs": n_envs}
        counts["keep_checkpoints"] = keep_checkpoints
        for name, value in counts.items():
            _check_count(name, value)
        trainer.learn(
            self,
            self.team_envs(n_envs),
            episodes,
            Path(log_dir) if log_dir is not None else None,
            Path(checkpoint_dir) if checkpoint_dir is not None else None,
            checkpoint_every,
            progress,
            callback,
            keep_checkpoints,
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
        actions = self._acting.act(seen[None], legal[None], [epsilon], [self._acting_rng])[0].tolist()
        return {
            agent: action + start
            for agent, action, start in zip(self.spec.agents, actions, self.spec.action_starts, strict=True)
            if agent in observations
        }

    def evaluate(self, env: ParallelEnv[str, Any, Any] | None = None, episodes: int = 10) -> Evaluation:
        """Returns and actions of greedy episodes; always on the same seeds, none of which training sees.

        env  another environment than the agent's own, of the same specification
        """
        _check_count("episodes", episodes)
        env_view = self.team_envs(1)[0] if env is None else TeamEnv(env)
        _check_same(self.spec, env_view.spec)
        team, rng = self.new_team(), generator(self.seed, Stream.ACTING)
        starts = [Start(integer(self.seed, Stream.EVALUATION, index), 0.0, rng) for index in range(episodes)]
        played, counts = [], np.zeros((self.spec.n_agents, self.spec.max_actions), dtype=np.int64)
        for start in starts:
            played.append(play_episodes([env_view], team, [start])[0][0])
            counts += env_view.action_counts
        returns = [episode.total_reward for episode in played]
        error = float(np.std(returns, ddof=1)) / math.sqrt(episodes) if episodes > 1 else math.nan
        lengths = tuple(len(episode) for episode in played)
        rows = zip(self.spec.agents, self.spec.n_actions, counts.tolist(), strict=True)
        action_counts = {agent: tuple(row[:n_actions]) for agent, n_actions, row in rows}
        return Evaluation(float(np.mean(returns)), error, tuple(returns), lengths, action_counts)

    def export_onnx(self, path: str | Path) -> float:
        """Writes one step of the agents' network as ONNX; see `qmix_agent.export.export_onnx`."""
        from .export import export_onnx

        return export_onnx(self.learner.network, self.spec, path)

    def save(self, directory: str | Path, keep: int = 2) -> Path:
        """Writes everything that learning goes on from to one file in `directory`, and returns its path.

        The `keep - 1` files before it stay, as checkpoint.1.pt and so on. Writes nothing and leaves all as it was when
        a weight is not finite (FloatingPointError) or the file cannot be written, as on a full disk (OSError).
        """
        _check_count("keep", keep)
        self.learner.require_finite()
        state = self.state_dict()
        state["buffer"] = to_tensors(state["buffer"])
        return checkpoint.write(Path(directory), state, keep)

    @classmethod
    def load(cls, directory: str | Path, env: AnyEnvs | None = None, device: torch.device | str = "cpu") -> QMIX:
        """The agent that `save` or `learn` left in `directory`. Without `env` it can act, but not learn.

        A damaged file is passed over, with a warning, for the one before it. Raises FileNotFoundError, or
        CheckpointError (a ValueError) where all are damaged, for another version, or an `env` of another specification.
        """
        path, state = checkpoint.read_newest(Path(directory))
        envs: list[TeamEnv] = _team_envs(env) if env is not None else []
        agent = cls.__new__(cls)
        try:
            saved = state["spec"]
            spec = EnvSpec(**{**saved, "observations": tuple(SpaceSpec(**space) for space in saved["observations"])})
            if envs:
                _check_same(spec, envs[0].spec)
            agent._set_up(spec, QMIXConfig(**state["config"]), state["seed"], device, envs)
            agent.load_state_dict({**state, "buffer": from_tensors(state["buffer"])})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be used: {error}") from error
        return agent

    @staticmethod
    def checkpoint_exists(directory: str | Path) -> bool:
        """Whether `load` would find a file."""
        return bool(checkpoint.files(Path(directory)))

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that learning goes on from. Episodes in `buffer` are shared, as nothing ever changes them."""
        return {
            "spec": dataclasses.asdict(self.spec),
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
            "episode": self.episode,
            "env_steps": self.env_steps,
            "return_scale": dataclasses.asdict(self.return_scale),
            "learner": self.learner.state_dict(),
            "buffer": list(self.buffer),
            "priorities": self.buffer.priorities,
            "envs": self._env_state_dicts(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a `state_dict` of the same configuration and specification."""
        self.learner.load_state_dict(state["learner"])
        self.buffer = ReplayBuffer(self.config.buffer_size, state["buffer"], state["priorities"])
        self.return_scale = ReturnScale(**state["return_scale"])
        self.episode, self.env_steps = state["episode"], state["env_steps"]
        self._env_states = state["envs"]
        own = [env for env in self._envs if not env.shared]
        for env, env_state in zip(own, self._env_states, strict=False):
            _load_env_state(env, env_state)

    @property
    def team_env(self) -> TeamEnv:
        """The agent's (first) environment. Raises ValueError if it was loaded without one."""
        return self.team_envs(1)[0]

    def team_envs(self, count: int) -> list[TeamEnv]:
        """Its first `count` environments; those that it does not have yet are copied from the first."""
        if not self._envs:
            raise ValueError("this agent was loaded without an environment and can only act; use QMIX.load(dir, env)")
        while len(self._envs) < count:
            env = self._envs[0].copy()
            own = sum(not other.shared for other in self._envs)
            if not env.shared and own < len(self._env_states):
                _load_env_state(env, self._env_states[own])
            self._envs.append(env)
        return self._envs[:count]

    def new_team(self) -> Team:
        """Actors with the present weights and memories of their own."""
        return Team(self.learner.network, self.spec, self.config.exploration, self.learner.device)

    def _env_state_dicts(self) -> list[Any]:
        """What lasts in each environment that does not share it; of those that are not there, as it was loaded."""
        own = [env for env in self._envs if not env.shared]
        states = [checkpoint.encode(env.env.state_dict()) if env.has_state_dict else None for env in own]
        return states + self._env_states[len(states) :]


def _team_envs(env: AnyEnvs) -> list[TeamEnv]:
    envs = [TeamEnv(one) for one in (env if isinstance(env, (list, tuple)) else [env])]
    if not envs:
        raise ValueError("the list of environments is empty; QMIX needs at least one")
    for other in envs[1:]:
        _check_same(envs[0].spec, other.spec)
    return envs


def _check_same(ours: EnvSpec, theirs: EnvSpec) -> None:
    differences = theirs.differences(ours)
    if differences:
        told = "; ".join(differences)
        raise ValueError(f"the environment is not the one this agent was made for (environment against agent): {told}")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _load_env_state(env: TeamEnv, state: Any) -> None:
    if state is None:
        return
    if env.has_state_dict:
        env.env.load_state_dict(checkpoint.decode(state))
        return
    warnings.warn(
        f"the checkpoint holds the environment's lasting state, but {type(env.env).__name__} has no "
        "load_state_dict(); it starts afresh",
        stacklevel=3,
    )
