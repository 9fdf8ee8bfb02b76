"""The epsilon-greedy policy of all agents.

Shapes: K games, N agents, O observation features, A actions, H hidden features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .exploration import epsilon_greedy_actions
from .networks import AgentNetwork


class EpsilonGreedyPolicy:
    """Acts for all agents in K parallel games with one pass of the network per step.

    It keeps the hidden states and last actions of the current episodes, but no weights of its own: it always acts with
    the current weights of `network`.
    """

    def __init__(self, network: AgentNetwork, device: torch.device) -> None:
        self._network, self._device = network, device
        self.reset()

    def reset(self, games: int = 1) -> None:
        """Start new episodes in this number of games."""
        self._hidden: torch.Tensor | None = None
        self._last_actions: np.ndarray | None = None

    @torch.no_grad()
    def act(
        self,
        observations: np.ndarray,
        action_masks: np.ndarray,
        epsilons: Sequence[float],
        rngs: Sequence[np.random.Generator],
    ) -> np.ndarray:
        """Choose legal actions for the next step.

        Args:
            observations: float32 [K, N, O].
            action_masks: Legal actions, bool [K, N, A].
            epsilons: Probability of a random action in each game.
            rngs: Random generator of each game.

        Returns:
            Actions, int64 [K, N].
        """
        if self._last_actions is None:
            self._last_actions = np.full(observations.shape[:2], -1, dtype=np.int64)
        now = torch.tensor(observations, device=self._device).unsqueeze(1)  # [K, 1, N, O]
        last = torch.tensor(self._last_actions, device=self._device).unsqueeze(1)  # [K, 1, N]
        q, self._hidden = self._network(now, last, self._hidden)
        self._last_actions = epsilon_greedy_actions(q[:, 0].cpu().numpy(), action_masks, epsilons, rngs)
        return self._last_actions
