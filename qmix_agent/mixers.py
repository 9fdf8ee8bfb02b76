"""Mixers: from the values of the agents to the value of the team.

Absent agents contribute nothing to the value of a team.

Shapes: B episodes, T steps, N agents, O observation features, S state features, E embedding, P pooled features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from .config import Mixer, QMIXConfig
from .types import EnvSpec, Moments


class QMixer(nn.Module):
    """Monotonic mixing network whose weights depend on the state (Rashid et al. 2018, section 4.1).

    Q_tot = w2(s) . ELU(W1(s) q + b1(s)) + V(s). The hypernetworks of W1 and w2 and the network V have two layers, b1 is
    linear. W1 and w2 are made non-negative by taking absolute values, so that dQ_tot / dq_i >= 0 (equation 5) and the
    joint argmax is each agent's own argmax.
    """

    def __init__(self, n_agents: int, n_state: int, embed: int, hypernet_hidden: int) -> None:
        super().__init__()
        self.n_agents, self.embed = n_agents, embed
        self.weights_1 = _two_layers(n_state, hypernet_hidden, n_agents * embed)
        self.bias_1 = nn.Linear(n_state, embed)
        self.weights_2 = _two_layers(n_state, hypernet_hidden, embed)
        self.value = _two_layers(n_state, embed, 1)

    def forward(self, q: torch.Tensor, moments: Moments) -> torch.Tensor:
        """Mix agent values.

        Args:
            q: Agent values, [..., B, T, N]. Leading dimensions share the mixing weights of their states.
            moments: The moments of these values, [B, T]; the states decide the weights.

        Returns:
            Q_tot, [..., B, T, 1].
        """
        q, states = q * moments.present, moments.states
        rows = states.reshape(-1, states.shape[-1])  # [B*T, S]; make it contiguous once, not in every hypernetwork
        batch_shape = states.shape[:-1]
        weights_1 = self.weights_1(rows).abs().view(*batch_shape, self.n_agents, self.embed)
        # On a CPU, a product and a sum are faster than B*T tiny matrix products.
        mixed = (q.unsqueeze(-1) * weights_1).sum(dim=-2)  # [..., B, T, E]
        hidden = functional.elu(mixed + self.bias_1(rows).view(*batch_shape, self.embed))
        weights_2 = self.weights_2(rows).abs().view(*batch_shape, self.embed)
        return (hidden * weights_2).sum(dim=-1, keepdim=True) + self.value(rows).view(*batch_shape, 1)


class PooledMixer(nn.Module):
    """Monotonic mixing network for teams of any size and order.

    It computes QMIX's weights without the state, whose size depends on the team. A network f describes each agent; the
    mean of f over the team, z, takes the place of the state, and each agent's own weights come from z and its
    observation:

        Q_tot = w2(z) . ELU(mean_i |w1(o_i, z)| q_i + b1(z)) + V(z),  z = mean_i f(o_i).

    All weights on the way of q_i are non-negative, so Q_tot is monotonic in every q_i. The mean over a set is that of
    Deep Sets (Zaheer et al. 2017, arXiv:1703.06114); REFIL (Iqbal et al. 2021, arXiv:2006.04222) builds mixing weights
    for varying teams from attention over entities instead.
    """

    def __init__(self, n_observation: int, embed: int, hypernet_hidden: int) -> None:
        super().__init__()
        self.describe = _two_layers(n_observation, hypernet_hidden, hypernet_hidden)
        self.weights_1 = _two_layers(n_observation + hypernet_hidden, hypernet_hidden, embed)
        self.bias_1 = nn.Linear(hypernet_hidden, embed)
        self.weights_2 = _two_layers(hypernet_hidden, hypernet_hidden, embed)
        self.value = _two_layers(hypernet_hidden, embed, 1)

    def forward(self, q: torch.Tensor, moments: Moments) -> torch.Tensor:
        """Mix agent values.

        Args:
            q: Agent values, [..., B, T, N]. Leading dimensions share the mixing weights of their moments.
            moments: The moments of these values, [B, T]; the observations decide the weights.

        Returns:
            Q_tot, [..., B, T, 1].
        """
        observations = moments.observations
        # After the end of an episode nobody is present; the value of that moment is never used.
        shares = moments.present / moments.present.sum(-1, keepdim=True).clamp(min=1)  # [B, T, N]
        pooled = (self.describe(observations) * shares.unsqueeze(-1)).sum(-2)  # [B, T, P]
        pooled_for_each = pooled.unsqueeze(-2).expand(*observations.shape[:-1], -1)  # [B, T, N, P]
        weights_1 = self.weights_1(torch.cat([observations, pooled_for_each], -1)).abs()  # [B, T, N, E]
        mixed = ((q * shares).unsqueeze(-1) * weights_1).sum(dim=-2)  # [..., B, T, E]
        hidden = functional.elu(mixed + self.bias_1(pooled))
        return (hidden * self.weights_2(pooled).abs()).sum(dim=-1, keepdim=True) + self.value(pooled)


class VDNMixer(nn.Module):
    """Sum of the agent values (Sunehag et al. 2018, arXiv:1706.05296)."""

    def forward(self, q: torch.Tensor, moments: Moments) -> torch.Tensor:
        """Map agent values [..., N] to Q_tot [..., 1]; states and observations are not used."""
        return (q * moments.present).sum(dim=-1, keepdim=True)


class IQLMixer(nn.Module):
    """No mixing: each agent learns the team return from its own values (Tan 1993)."""

    def forward(self, q: torch.Tensor, moments: Moments) -> torch.Tensor:
        """Return the agent values [..., N] unchanged; the moments are not used."""
        return q


MIXERS: dict[Mixer, Callable[[EnvSpec, QMIXConfig], nn.Module]] = {
    "qmix": lambda spec, config: QMixer(spec.n_agents, spec.n_state, config.mixing_embed, config.hypernet_hidden),
    "pooled": lambda spec, config: PooledMixer(spec.max_observation, config.mixing_embed, config.hypernet_hidden),
    "vdn": lambda spec, config: VDNMixer(),
    "iql": lambda spec, config: IQLMixer(),
}


def make_mixer(spec: EnvSpec, config: QMIXConfig) -> nn.Module:
    """Return a new mixer of the type that `config.mixer` names."""
    return MIXERS[config.mixer](spec, config)


def _two_layers(n_inputs: int, n_hidden: int, n_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_inputs, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_outputs))
