"""The agent network: action values of each agent from that agent's own observations.

Shapes: B episodes, T steps, N agents, O observation features, I input features, A actions, H hidden features. Inside
the network the time dimension comes first, so that a recurrent layer reads each step as one contiguous block.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .config import QMIXConfig
from .layers import PerAgentGRU, PerAgentLinear
from .types import EnvSpec


class AgentNetwork(nn.Module):
    """Linear -> GRU -> Linear (Rashid et al. 2018, figure 2c), or a multilayer perceptron of three layers.

    With `parameter_sharing`, one set of weights serves all agents; without it, each agent has its own. `layer_norm` is
    applied before each ReLU and to the output of the GRU (Ba et al. 2016, arXiv:1607.06450). It has no gain and bias,
    because the next layer has its own (Xu et al. 2019, arXiv:1911.07013, find that they do not help).

    With `prior`, values are those of the last layer minus slope * |amount of the action - proposed amount|. The last
    layer starts at zero and the slope at one; both are learned.

    Raises:
        ValueError: `prior` is set, and the environment proposes nothing.
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
            return PerAgentLinear(self.n_agents, inputs, outputs)

        hidden_size = config.hidden_size
        self.encoder = linear(n_inputs, hidden_size)
        self.body: nn.Module
        if not self.recurrent:
            self.body = linear(hidden_size, hidden_size)
        elif config.parameter_sharing:
            self.body = nn.GRU(hidden_size, hidden_size)
        else:
            self.body = PerAgentGRU(self.n_agents, hidden_size)
        self.head = linear(hidden_size, self.n_actions)
        self.proposal = spec.proposal if config.prior else None
        if config.prior:
            if self.proposal is None:
                raise ValueError(
                    "prior needs an environment that proposes actions by its attribute action_proposal, as "
                    "FilterPruneEnv does; set prior to False"
                )
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)
            self.slope = nn.Parameter(torch.ones(1 if config.parameter_sharing else self.n_agents, 1))  # [1 or N, 1]
            self.amounts: torch.Tensor
            self.register_buffer("amounts", torch.tensor(self.proposal.amounts, device="cpu"), persistent=False)

    def forward(
        self, observations: torch.Tensor, last_actions: torch.Tensor, hidden: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute the values of all actions.

        Args:
            observations: float32 [B, T, N, O].
            last_actions: Previous actions, int64 [B, T, N]; -1 at the start of an episode.
            hidden: Hidden state before the first step, [B, N, H]; None at the start of an episode.

        Returns:
            Action values, [B, T, N, A], and the hidden state after the last step, [B, N, H] (None if not recurrent).
        """
        q, hidden = self.values(self.inputs(observations, last_actions), hidden)
        return q.transpose(0, 1), hidden

    def inputs(self, observations: torch.Tensor, last_actions: torch.Tensor) -> torch.Tensor:
        """Return the input features of the first layer, [T, B, N, I], from the arguments of `forward`."""
        parts = [observations.transpose(0, 1)]
        if self.last_action:
            actions = torch.arange(self.n_actions, device=observations.device)
            one_hot = last_actions.transpose(0, 1).unsqueeze(-1) == actions  # all False for -1
            parts.append(one_hot.to(observations.dtype))
        if self.agent_id:
            identity = torch.eye(self.n_agents, dtype=observations.dtype, device=observations.device)
            parts.append(identity.expand(*parts[0].shape[:2], -1, -1))
        return torch.cat(parts, dim=-1)

    def values(
        self, inputs: torch.Tensor, hidden: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute action values, [T, B, N, A], and the last hidden state from `inputs` [T, B, N, I]; see `forward`."""
        features = self._normalise(self.encoder(inputs)).relu()  # [T, B, N, H]
        if isinstance(self.body, nn.GRU):
            gru_hidden = hidden.flatten(0, 1).unsqueeze(0) if hidden is not None else None  # [1, B*N, H]
            outputs, gru_hidden = self.body(features.flatten(1, 2), gru_hidden)
            features, hidden = outputs.view_as(features), gru_hidden[0].unflatten(0, features.shape[1:3])
        elif self.recurrent:
            features, hidden = self.body(features, hidden)
        else:
            features = self._normalise(self.body(features)).relu()
        if self.recurrent:
            features = self._normalise(features)
        q = self.head(features)
        if self.proposal is not None:
            proposed = inputs[..., self.proposal.feature].unsqueeze(-1)  # [T, B, N, 1]
            q = q - self.slope * (self.amounts - proposed).abs()
        return q, hidden

    def _normalise(self, features: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(features, features.shape[-1:]) if self.layer_norm else features
