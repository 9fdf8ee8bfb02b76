"""Playing episodes: the team that acts, in one environment or in several side by side.

Shapes: K environments, N agents, O observation features, A actions, H hidden, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .exploration import choose
from .networks import AgentNetwork
from .team_env import TeamEnv, team_scalars
from .types import EnvSpec, Episode, View


class Team:
    """All agents of K games, acting with one network: it keeps their memories and last actions from step to step."""

    def __init__(self, network: AgentNetwork, spec: EnvSpec, exploration: str, device: torch.device) -> None:
        self._network, self._spec, self._exploration, self._device = network, spec, exploration, device
        self.reset()

    def reset(self, games: int = 1, noise: np.ndarray | None = None) -> None:
        """Forgets: new episodes start. noise [K, N, H + A] stays in the network's weights until the next reset."""
        self._hidden: torch.Tensor | None = None
        self._last_actions = np.full((games, self._spec.n_agents), -1, dtype=np.int64)
        self._noise = torch.tensor(noise, device=self._device) if noise is not None else None

    @torch.no_grad()
    def act(
        self,
        observations: np.ndarray,
        action_masks: np.ndarray,
        epsilons: Sequence[float],
        rngs: Sequence[np.random.Generator],
    ) -> np.ndarray:
        """Epsilon-greedy legal actions from one pass of the network: [K, N, O], bool [K, N, A] -> int64 [K, N]."""
        seen = torch.tensor(observations, device=self._device).unsqueeze(1)  # [K, 1, N, O]
        last = torch.tensor(self._last_actions, device=self._device).unsqueeze(1)  # [K, 1, N]
        q, self._hidden = self._network(seen, last, self._hidden, self._noise)
        self._last_actions = choose(q[:, 0].cpu().numpy(), action_masks, epsilons, rngs, self._exploration)
        return self._last_actions


@dataclass(frozen=True)
class Start:
    """All that an episode depends on besides the weights."""

    seed: int
    """Of the environment's reset."""
    epsilon: float
    rng: np.random.Generator
    """What explores."""
    noise: np.ndarray | None = None
    """In the weights of noisy agents, float32 [N, H + A]."""


def play_episodes(
    envs: Sequence[TeamEnv], team: Team, starts: Sequence[Start]
) -> list[tuple[Episode, dict[str, float]]]:
    """One episode in each of K environments, step by step together; with each, what its last infos agree on.

    All environments are sent their actions before the first is waited for. A game that is over keeps its row in the
    batch, so that the others' rows stay in place, and is sent nothing more.
    """
    noise = [start.noise for start in starts if start.noise is not None]
    team.reset(len(envs), np.stack(noise) if noise else None)
    records = [_Record(env.reset(start.seed)) for env, start in zip(envs, starts, strict=True)]
    epsilons, rngs = [start.epsilon for start in starts], [start.rng for start in starts]
    playing = list(zip(envs, records, strict=True))
    while playing:
        observations = np.stack([record.views[-1].observations for record in records])
        masks = np.stack([record.views[-1].action_masks for record in records])
        for record, actions in zip(records, team.act(observations, masks, epsilons, rngs), strict=True):
            record.next_actions = actions
        for env, record in playing:
            env.step_async(record.next_actions)
        for env, record in playing:
            record.add(*env.step_wait())
        playing = [(env, record) for env, record in playing if not record.over]
    return [(record.episode(), team_scalars(env.infos)) for env, record in zip(envs, records, strict=True)]


class _Record:
    """An episode in the making."""

    def __init__(self, view: View) -> None:
        self.views, self.over = [view], False
        self.next_actions = np.empty(0, dtype=np.int64)
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._terminated: list[bool] = []

    def add(self, view: View, reward: float, terminated: bool, over: bool) -> None:
        self._actions.append(self.next_actions)
        self.views.append(view)
        self._rewards.append(reward)
        self._terminated.append(terminated)
        self.over = over

    def episode(self) -> Episode:
        return Episode(
            observations=np.stack([view.observations for view in self.views]),
            states=np.stack([view.state for view in self.views]),
            action_masks=np.stack([view.action_masks for view in self.views]),
            actions=np.stack(self._actions),
            rewards=np.array(self._rewards, dtype=np.float32),
            terminated=np.array(self._terminated, dtype=bool),
        )
