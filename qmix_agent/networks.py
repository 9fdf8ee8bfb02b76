"""The agents' network: values of an agent's own actions from what the agent itself has seen.

Shapes: B episodes, T steps, N agents, O observation features, I input features, A actions, H hidden. Inside, time comes
first: a recurrent network then reads each step as one contiguous block.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .config import QMIXConfig
from .layers import NoisyLinear, TeamGRU, TeamLinear
from .types import EnvSpec


class AgentNetwork(nn.Module):
    """Linear -> GRU -> Linear (Rashid et al. 2018, figure 2c), or an MLP of three layers.

    With `parameter_sharing` one set of weights serves all agents; without it every agent has its own. `layer_norm` acts
    before each ReLU and on the GRU's output (Ba et al. 2016, arXiv:1607.06450), without gain and bias: the layer that
    follows has its own (Xu et al. 2019, arXiv:1911.07013, find that they do not help).
    """

    def __init__(self, spec: EnvSpec, config: QMIXConfig) -> None:
        super().__init__()
        self.n_agents, self.n_actions, self.hidden_size = spec.n_agents, spec.max_actions, config.hidden_size
        self.last_action, self.recurrent, self.layer_norm = config.last_action, config.recurrent, config.layer_norm
        self.agent_id = config.agent_id and config.parameter_sharing
        n_inputs = spec.max_observation
        n_inputs += self.n_actions if self.last_action else 0
        n_inputs += self.n_agents if self.agent_id else 0

        def linear(inputs: int, outputs: int) -> nn.Module:
            if config.parameter_sharing:
                return nn.Linear(inputs, outputs)
            return TeamLinear(self.n_agents, inputs, outputs)

        hidden = config.hidden_size
        self.encoder = linear(n_inputs, hidden)
        self.body: nn.Module
        if not self.recurrent:
            self.body = linear(hidden, hidden)
        elif config.parameter_sharing:
            self.body = nn.GRU(hidden, hidden)
        else:
            self.body = TeamGRU(self.n_agents, hidden)
        self.noisy = config.exploration == "noisy"
        self.head: nn.Module = linear(hidden, self.n_actions)
        if self.noisy:
            self.head = NoisyLinear(self.head, linear(hidden, self.n_actions), hidden, config.noisy_sigma)

    def forward(
        self,
        observations: torch.Tensor,
        last_actions: torch.Tensor,
        hidden: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Values of all actions, [B, T, N, A], and the memory after the last step, [B, N, H] (None if not recurrent).

        observations  float32 [B, T, N, O]
        last_actions  int64 [B, T, N]; -1 where there was none
        hidden        memory before the first step; None at the start of an episode
        noise         of `draw_noise`; None acts by the mean weights
        """
        q, hidden = self.values(self.inputs(observations, last_actions), hidden, noise)
        return q.transpose(0, 1), hidden

    def inputs(self, observations: torch.Tensor, last_actions: torch.Tensor) -> torch.Tensor:
        """What the first layer reads, [T, B, N, I]: the live and the target network share it."""
        parts = [observations.transpose(0, 1)]
        if self.last_action:
            actions = torch.arange(self.n_actions, device=observations.device)
            one_hot = last_actions.transpose(0, 1).unsqueeze(-1) == actions  # all False for -1, "no action yet"
            parts.append(one_hot.to(observations.dtype))
        if self.agent_id:
            identity = torch.eye(self.n_agents, dtype=observations.dtype, device=observations.device)
            parts.append(identity.expand(*parts[0].shape[:2], -1, -1))
        return torch.cat(parts, dim=-1)

    def values(
        self, inputs: torch.Tensor, hidden: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `forward`, of `inputs` [T, B, N, I]; values are [T, B, N, A]."""
        features = self._normalised(self.encoder(inputs)).relu()  # [T, B, N, H]
        if isinstance(self.body, nn.GRU):
            memory = hidden.flatten(0, 1).unsqueeze(0) if hidden is not None else None  # [1, B*N, H]
            outputs, memory = self.body(features.flatten(1, 2), memory)
            features, hidden = outputs.view_as(features), memory[0].unflatten(0, (-1, self.n_agents))
        elif self.recurrent:
            features, hidden = self.body(features, hidden)
        else:
            features = self._normalised(self.body(features)).relu()
        if self.recurrent:
            features = self._normalised(features)
        return (self.head(features, noise) if self.noisy else self.head(features)), hidden

    def draw_noise(self, rng: np.random.Generator) -> np.ndarray:
        """Noise for one episode of noisy agents, float32 [N, H + A]."""
        return rng.standard_normal((self.n_agents, self.hidden_size + self.n_actions), np.float32)

    def _normalised(self, features: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(features, features.shape[-1:]) if self.layer_norm else features
