"""The temporal-difference update.

Shapes: B episodes, T steps, N agents, A actions, S state features, M learned values (1 for a team, N for iql).
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .config import QMIXConfig
from .mixers import make_mixer
from .networks import AgentNetwork
from .seeding import Stream, integer
from .types import Batch, EnvSpec


def greedy_values(
    live_q: torch.Tensor, target_q: torch.Tensor, action_masks: torch.Tensor, double_q: bool
) -> torch.Tensor:
    """The target network's value of each agent's best legal action, [..., N].

    With `double_q` the live network says which action is best (van Hasselt et al. 2016, arXiv:1509.06461, equation 4).
    Moments without any legal action (padding) give a finite value that nobody may use.

    live_q, target_q  [..., N, A]
    action_masks      bool [..., N, A]
    """
    judged = live_q if double_q else target_q
    # Infinity only ever meets argmax: the value itself is gathered from the unmasked, finite tensor.
    best = judged.masked_fill(~action_masks, -torch.inf).argmax(dim=-1, keepdim=True)
    return target_q.gather(-1, best).squeeze(-1)


def td_targets(
    rewards: torch.Tensor,
    terminated: torch.Tensor,
    filled: torch.Tensor,
    next_values: torch.Tensor,
    gamma: float,
    td_lambda: float,
) -> torch.Tensor:
    """TD(lambda) targets, [B, T, M] (Sutton and Barto 2018, equation 12.2 as a backward recursion).

    G_t = r_t + gamma (1 - terminated_t) ((1 - lambda) V_{t+1} + lambda G_{t+1}); an episode's last step bootstraps from
    V alone, so that a truncated step counts on its true next moment and a terminated step's target is r. Padded steps
    are 0.

    rewards, terminated, filled  [B, T]
    next_values                  [B, T, M], V_{t+1} at index t
    """
    targets = torch.zeros_like(next_values)
    later = torch.zeros_like(next_values[:, 0])
    steps = rewards.shape[1]
    for t in reversed(range(steps)):
        value = next_values[:, t]
        if t + 1 < steps:
            value = torch.where(filled[:, t + 1, None] > 0, (1 - td_lambda) * value + td_lambda * later, value)
        later = filled[:, t, None] * (rewards[:, t, None] + gamma * (1 - terminated[:, t, None]) * value)
        targets[:, t] = later
    return targets


@dataclass(frozen=True)
class UpdateResult:
    """Means over the steps of one batch."""

    loss: float
    q_tot: float
    td_error: float
    """Mean absolute error."""
    grad_norm: float
    """Before clipping."""


class Learner:
    """The live networks, their targets, and the optimizer."""

    def __init__(self, spec: EnvSpec, config: QMIXConfig, seed: int, device: torch.device | str) -> None:
        self.config, self.device = config, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(integer(seed, Stream.WEIGHTS))
            self.network = AgentNetwork(spec, config).to(self.device)
            self.mixer = make_mixer(spec, config).to(self.device)
        self.target_network = copy.deepcopy(self.network).requires_grad_(False)
        self.target_mixer = copy.deepcopy(self.mixer).requires_grad_(False)
        self.parameters = [*self.network.parameters(), *self.mixer.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate)
        self.updates = 0

    def q_and_targets(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Values of the actions taken and what they should have been, both [B, T, M]; only the first has a gradient."""
        last_actions = functional.pad(batch.actions, (0, 0, 1, 0), value=-1)  # [B, T+1, N]
        live_q, _ = self.network(batch.observations, last_actions)  # [B, T+1, N, A]
        taken = live_q[:, :-1].gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)  # [B, T, N]
        q_tot = self.mixer(taken, batch.states[:, :-1])  # [B, T, M]
        with torch.no_grad():
            target_q, _ = self.target_network(batch.observations, last_actions)
            best = greedy_values(live_q[:, 1:], target_q[:, 1:], batch.action_masks[:, 1:], self.config.double_q)
            next_values = self.target_mixer(best, batch.states[:, 1:])  # [B, T, M]
            targets = td_targets(
                batch.rewards, batch.terminated, batch.filled, next_values, self.config.gamma, self.config.td_lambda
            )
        return q_tot, targets

    def loss(self, q_tot: torch.Tensor, targets: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
        """Mean over the steps that were played. q_tot, targets [B, T, M]; filled [B, T]."""
        if self.config.loss == "huber":
            errors = functional.huber_loss(q_tot, targets, reduction="none")
        else:
            errors = functional.mse_loss(q_tot, targets, reduction="none")
        return _mean(errors, filled)

    def update(self, batch: Batch, reward_scale: float = 1.0) -> UpdateResult:
        """One step of Adam on rewards times `reward_scale`.

        Raises FloatingPointError, and leaves all weights alone, when the loss or the gradient is not finite.
        """
        if reward_scale != 1.0:
            batch = dataclasses.replace(batch, rewards=batch.rewards * reward_scale)
        q_tot, targets = self.q_and_targets(batch)
        loss = self.loss(q_tot, targets, batch.filled)
        self._check_finite("loss", loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self._check_finite("gradient norm", grad_norm)
        self.optimizer.step()
        self.updates += 1
        self._update_targets()
        return UpdateResult(
            loss=loss.item(),
            q_tot=_mean(q_tot.detach(), batch.filled).item(),
            td_error=_mean((q_tot.detach() - targets).abs(), batch.filled).item(),
            grad_norm=grad_norm.item(),
        )

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything an update depends on or changes."""
        return copy.deepcopy(
            {
                "network": self.network.state_dict(),
                "mixer": self.mixer.state_dict(),
                "target_network": self.target_network.state_dict(),
                "target_mixer": self.target_mixer.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "updates": self.updates,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a `state_dict`, without keeping hold of its tensors."""
        for name in ("network", "mixer", "target_network", "target_mixer"):
            getattr(self, name).load_state_dict(state[name])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.updates = state["updates"]

    def _update_targets(self) -> None:
        tau = self.config.target_tau
        if tau is None:
            if self.updates % self.config.target_update_every:
                return
            tau = 1.0
        with torch.no_grad():
            for live, target in ((self.network, self.target_network), (self.mixer, self.target_mixer)):
                for source, copied in zip(live.parameters(), target.parameters(), strict=True):
                    copied.lerp_(source, tau)

    def _check_finite(self, quantity: str, value: torch.Tensor) -> None:
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"{quantity} is {value.item()} at update {self.updates + 1}; nothing was changed by it. Look for "
                "rewards or observations of extreme size, or lower learning_rate"
            )


def _mean(values: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
    """Mean over played steps. A padded step is cut out before the sum, not multiplied by 0."""
    return values.masked_fill(filled.unsqueeze(-1) == 0, 0.0).sum() / (filled.sum() * values.shape[-1])
