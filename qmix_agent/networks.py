"""The network that all agents share: values of an agent's own actions from what the agent itself has seen."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .config import QMIXConfig
from .types import EnvSpec


class AgentNetwork(nn.Module):
    """Linear -> GRU -> Linear (Rashid et al. 2018, figure 2c), or an MLP of three layers.

    Shapes: B episodes, T steps, N agents, O observation features, A actions, H hidden.
    """

    def __init__(self, spec: EnvSpec, config: QMIXConfig) -> None:
        super().__init__()
        self.n_agents, self.n_actions = spec.n_agents, spec.max_actions
        self.last_action, self.agent_id, self.recurrent = config.last_action, config.agent_id, config.recurrent
        n_inputs = spec.max_observation
        n_inputs += self.n_actions if self.last_action else 0
        n_inputs += self.n_agents if self.agent_id else 0
        self.encoder = nn.Linear(n_inputs, config.hidden_size)
        self.body: nn.GRU | nn.Linear
        if self.recurrent:
            self.body = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        else:
            self.body = nn.Linear(config.hidden_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, self.n_actions)

    def forward(
        self, observations: torch.Tensor, last_actions: torch.Tensor, hidden: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Values of all actions, [B, T, N, A], and the memory after the last step, [1, B*N, H] (None if not recurrent).

        observations  float32 [B, T, N, O]
        last_actions  int64 [B, T, N]; -1 where there was none
        hidden        memory before the first step; None at the start of an episode
        """
        batch, steps, agents, _ = observations.shape
        inputs = self._inputs(observations, last_actions)  # [B, T, N, I]
        encoded = functional.relu(self.encoder(inputs))  # [B, T, N, H]
        if isinstance(self.body, nn.GRU):
            sequences = encoded.transpose(1, 2).reshape(batch * agents, steps, -1)  # [B*N, T, H]
            outputs, hidden = self.body(sequences, hidden)
            features = outputs.reshape(batch, agents, steps, -1).transpose(1, 2)  # [B, T, N, H]
        else:
            features, hidden = functional.relu(self.body(encoded)), None
        return self.head(features), hidden

    def _inputs(self, observations: torch.Tensor, last_actions: torch.Tensor) -> torch.Tensor:
        parts = [observations]
        if self.last_action:
            # One column more than there are actions, cut off again: it takes the -1 of "no action yet".
            parts.append(functional.one_hot(last_actions + 1, self.n_actions + 1)[..., 1:].to(observations.dtype))
        if self.agent_id:
            identity = torch.eye(self.n_agents, dtype=observations.dtype, device=observations.device)
            parts.append(identity.expand(*observations.shape[:2], -1, -1))
        return torch.cat(parts, dim=-1)
