"""PyMARL's QMIX: QLearner, BasicMAC, RNNAgent, QMixer, ReplayBuffer and EpisodeRunner of an unmodified clone.

    git clone https://github.com/oxwhirl/pymarl && git -C pymarl checkout c971afdceb34635d31b778021b0ef90d7af51e86

None of its code is copied here and no file of the clone needs a change. Two things are replaced at run time: its `envs`
package, because it imports StarCraft; and the index lists of EpisodeBatch, which become tuples, because torch 2.9 and
later interpret a list as a single index.

Its own choices (config/default.yaml and config/algs/qmix.yaml): RMSprop at 5e-4, squared one-step double-Q error,
gradient norm of at most 10, hypernetworks of two layers. PyMARL copies its target network every 200 episodes and takes
one update per episode. With more updates per episode, updates are counted instead of episodes, so that the target
network is equally old in updates.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from . import Env, Settings


class PyMARL:
    """Wraps the clone's classes. Its modules use the global generators of torch and NumPy; `seed` seeds both.

    Args:
        env: The game to train on.
        settings: Settings that all implementations share.
        seed: Seed of the global generators.
        clone: Path of the clone.
    """

    def __init__(self, env: Env, settings: Settings, seed: int, clone: Path) -> None:
        modules = import_pymarl(clone)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        self._runner_class = modules.EpisodeRunner
        self._settings, self._updates = settings, 0
        info = Game(env, settings.steps).get_env_info()
        args = self._args = SimpleNamespace(
            n_agents=info["n_agents"],
            n_actions=info["n_actions"],
            state_shape=info["state_shape"],
            env="game",
            env_args={"env": env, "steps": settings.steps},
            batch_size_run=1,
            test_nepisode=10**9,
            runner_log_interval=10**9,
            learner_log_interval=10**9,
            device="cpu",
            agent="rnn",
            agent_output_type="q",
            rnn_hidden_dim=settings.hidden_size,
            obs_agent_id=True,
            obs_last_action=True,
            action_selector="epsilon_greedy",
            epsilon_start=settings.epsilon_start,
            epsilon_finish=settings.epsilon_end,
            epsilon_anneal_time=max(1, settings.epsilon_episodes * settings.steps),
            mixer="qmix",
            mixing_embed_dim=settings.mixing_embed,
            hypernet_layers=2,
            hypernet_embed=64,
            double_q=True,
            gamma=settings.gamma,
            lr=5e-4,
            optim_alpha=0.99,
            optim_eps=1e-5,
            grad_norm_clip=10,
            target_update_interval=200,
        )
        scheme = {
            "state": {"vshape": info["state_shape"]},
            "obs": {"vshape": info["obs_shape"], "group": "agents"},
            "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
            "avail_actions": {"vshape": (info["n_actions"],), "group": "agents", "dtype": torch.int},
            "reward": {"vshape": (1,)},
            "terminated": {"vshape": (1,), "dtype": torch.uint8},
        }
        groups = {"agents": info["n_agents"]}
        preprocess = {"actions": ("actions_onehot", [modules.OneHot(out_dim=info["n_actions"])])}
        self._replay = modules.ReplayBuffer(
            scheme, groups, settings.buffer_size, settings.steps + 1, preprocess=preprocess, device="cpu"
        )
        self._mac = modules.BasicMAC(self._replay.scheme, groups, args)
        self._setup = {"scheme": scheme, "groups": groups, "preprocess": preprocess, "mac": self._mac}
        self._runner = self._new_runner(env)
        self._learner = modules.QLearner(self._mac, self._replay.scheme, NullLogger(), args)

    def collect(self, episodes: int) -> float:
        """Play with exploration, add the episodes to the replay buffer, and return the mean return."""
        total = 0.0
        for _ in range(episodes):
            with torch.no_grad():
                played = self._runner.run(test_mode=False)
            self._replay.insert_episode_batch(played)
            total += float(played["reward"].sum())
        return total / episodes

    def draw(self) -> Any:
        """Draw a batch from the replay buffer."""
        batch = self._replay.sample(self._settings.batch_size)
        return batch[:, : batch.max_t_filled()]

    def step(self, batch: Any) -> None:
        """Take one update."""
        self._updates += 1
        self._learner.train(batch, self._runner.t_env, self._updates)

    def evaluate(self, env: Env, episodes: int) -> float:
        """Return the mean return of greedy episodes."""
        runner = self._new_runner(env)
        with torch.no_grad():
            return sum(float(runner.run(test_mode=True)["reward"].sum()) for _ in range(episodes)) / episodes

    def _new_runner(self, env: Env) -> Any:
        self._args.env_args = {"env": env, "steps": self._settings.steps}
        runner = self._runner_class(self._args, NullLogger())
        runner.setup(**self._setup)
        return runner


class Game:
    """A ParallelEnv with PyMARL's environment interface: equal agents that all stay until the end."""

    def __init__(self, env: Env, steps: int) -> None:
        self._env, self.episode_limit, self._agents = env, steps, list(env.possible_agents)
        self._n_actions = int(env.action_space(self._agents[0]).n)

    def get_env_info(self) -> dict[str, Any]:
        self.reset()
        return {
            "n_agents": len(self._agents),
            "n_actions": self._n_actions,
            "obs_shape": len(self.get_obs()[0]),
            "state_shape": len(self.get_state()),
            "episode_limit": self.episode_limit,
        }

    def reset(self) -> None:
        self._observations, self._infos = self._env.reset()

    def step(self, actions: torch.Tensor) -> tuple[float, bool, dict[str, bool]]:
        chosen = dict(zip(self._agents, actions.tolist(), strict=True))
        self._observations, rewards, terminations, truncations, self._infos = self._env.step(chosen)
        truncated = any(truncations.values())
        return rewards[self._agents[0]], truncated or any(terminations.values()), {"episode_limit": truncated}

    def get_obs(self) -> np.ndarray:
        return np.stack([self._observations[agent] for agent in self._agents])

    def get_state(self) -> np.ndarray:
        return self._env.state()

    def get_avail_actions(self) -> np.ndarray:
        masks = (self._infos[agent].get("action_mask") for agent in self._agents)
        return np.stack([np.ones(self._n_actions, np.int8) if mask is None else mask for mask in masks])

    def close(self) -> None:
        pass


class NullLogger:
    """A logger with PyMARL's interface that discards everything."""

    console_logger = SimpleNamespace(info=lambda *_: None)

    def log_stat(self, *_: Any) -> None:
        pass


def import_pymarl(clone: Path) -> SimpleNamespace:
    """Import PyMARL's classes. Its modules have top-level names such as `components`, so sys.path must contain them."""
    envs = ModuleType("envs")
    envs.REGISTRY = {"game": Game}  # type: ignore[attr-defined]
    sys.modules["envs"] = envs
    if (source := str(clone / "src")) not in sys.path:
        sys.path.insert(0, source)
    # Its runner and buffer pass lists of arrays, and tensors, to torch.tensor, which warns about both.
    warnings.filterwarnings("ignore", module="components", category=UserWarning)
    from components.episode_buffer import EpisodeBatch, ReplayBuffer
    from components.transforms import OneHot
    from controllers.basic_controller import BasicMAC
    from learners.q_learner import QLearner
    from runners.episode_runner import EpisodeRunner

    if not hasattr(EpisodeBatch, "parse_to_list"):
        EpisodeBatch.parse_to_list = EpisodeBatch._parse_slices
        EpisodeBatch._parse_slices = lambda self, items: tuple(self.parse_to_list(items))
    return SimpleNamespace(
        BasicMAC=BasicMAC, EpisodeRunner=EpisodeRunner, OneHot=OneHot, QLearner=QLearner, ReplayBuffer=ReplayBuffer
    )
