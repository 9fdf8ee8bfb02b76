"""The temporal-difference update.

Shapes: B episodes, T steps, N agents, A actions, S state features, M learned values (1 for a team, N for iql).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .config import QMIXConfig
from .mixers import make_mixer
from .networks import AgentNetwork
from .return_scale import ReturnScale
from .seeding import Stream, generator, integer
from .targets import greedy_values, td_targets
from .types import Batch, EnvSpec


@dataclass(frozen=True)
class UpdateResult:
    """Means over the steps of one batch."""

    loss: float
    q_tot: float
    td_error: float
    """Mean absolute error."""
    grad_norm: float
    """Before clipping."""
    episode_errors: tuple[float, ...]
    """`td_error` of each episode by itself."""


class Learner:
    """The live networks, their targets, and the optimizer."""

    def __init__(self, spec: EnvSpec, config: QMIXConfig, seed: int, device: torch.device | str) -> None:
        self.config, self.seed, self.device = config, seed, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(integer(seed, Stream.WEIGHTS))
            self.network = AgentNetwork(spec, config).to(self.device)
            self.mixer = make_mixer(spec, config).to(self.device)
        self.target_network = copy.deepcopy(self.network).requires_grad_(False)
        self.target_mixer = copy.deepcopy(self.mixer).requires_grad_(False)
        for module in self.target_network.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # cuDNN wants them in one piece, and a copy has them in many
        self.parameters = [*self.network.parameters(), *self.mixer.parameters()]
        self._target_parameters = [*self.target_network.parameters(), *self.target_mixer.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate, fused=True)
        self.updates = 0

    def q_and_targets(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Values of the actions taken and what they should have been, both [B, T, M]; only the first has a gradient."""
        config = self.config
        last_actions = functional.pad(batch.actions, (0, 0, 1, 0), value=-1)  # [B, T+1, N]
        inputs = self.network.inputs(batch.observations, last_actions)  # [T+1, B, N, I]
        live_noise, target_noise = self._noise(len(batch.rewards))
        live_q, memory = self.network.values(inputs[:-1], noise=live_noise)  # [T, B, N, A]
        taken = live_q.transpose(0, 1).gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)  # [B, T, N]
        q_tot = self.mixer(taken, batch.states[:, :-1])  # [B, T, M]
        with torch.no_grad():
            # Where the last step led has a say in the argmax alone, so it costs no gradient.
            final_q, _ = self.network.values(inputs[-1:], memory, live_noise)
            next_q = torch.cat([live_q[1:], final_q]).transpose(0, 1)  # [B, T, N, A]
            target_q = self.target_network.values(inputs, noise=target_noise)[0][1:].transpose(0, 1)
            best = greedy_values(next_q, target_q, batch.action_masks[:, 1:], config.double_q)
            ahead = [best]
            if config.off_policy_correction and config.td_lambda > 0 and config.n_step != 1:
                next_actions = functional.pad(batch.actions[:, 1:], (0, 0, 0, 1))  # none follows the last step
                ahead.append(target_q.gather(-1, next_actions.unsqueeze(-1)).squeeze(-1))
            next_values, *next_taken = self.target_mixer(torch.stack(ahead), batch.states[:, 1:])  # each [B, T, M]
            targets = td_targets(
                batch.rewards,
                batch.terminated,
                batch.filled,
                next_values,
                config.gamma,
                config.td_lambda,
                config.n_step,
                *next_taken,
            )
        return q_tot, targets

    def loss(
        self, q_tot: torch.Tensor, targets: torch.Tensor, filled: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean over the steps that were played. q_tot, targets [B, T, M]; filled [B, T]; weights of episodes [B]."""
        if self.config.loss == "huber":
            errors = functional.huber_loss(q_tot, targets, reduction="none")
        else:
            errors = functional.mse_loss(q_tot, targets, reduction="none")
        if weights is not None:
            errors = errors * weights[:, None, None]
        return _sums(errors, filled).sum() / (filled.sum() * q_tot.shape[-1])

    def update(
        self, batch: Batch, scale: ReturnScale | None = None, weights: torch.Tensor | None = None
    ) -> UpdateResult:
        """One step of Adam, with `weights` [B] of the episodes (1 where None), on values as they are or of a `scale`.

        Raises FloatingPointError, and leaves all weights alone, when the loss or the gradient is not finite.
        """
        if scale is not None:
            rewards = scale.standardised(batch.rewards, batch.terminated, self.config.gamma)
            batch = dataclasses.replace(batch, rewards=rewards)
        q_tot, targets = self.q_and_targets(batch)
        loss = self.loss(q_tot, targets, batch.filled, weights)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        grad_norm = nn.utils.get_total_norm(gradients)
        values = q_tot.detach()
        steps = batch.filled.sum(dim=1) * values.shape[-1]  # [B]
        errors = _sums((values - targets).abs(), batch.filled)  # [B]
        totals = torch.stack([loss.detach(), grad_norm, _sums(values, batch.filled).sum() / steps.sum()])
        # One transfer for all that is told: on an accelerator each would wait for the device.
        told = torch.cat([totals, errors.sum().view(1) / steps.sum(), errors / steps]).tolist()
        self._check_finite({"loss": told[0], "gradient norm": told[1]}, batch, q_tot, targets)
        nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, grad_norm)
        self.optimizer.step()
        self.updates += 1
        self._update_targets()
        return UpdateResult(
            loss=told[0], grad_norm=told[1], q_tot=told[2], td_error=told[3], episode_errors=tuple(told[4:])
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

    def require_finite(self) -> None:
        """Raises FloatingPointError that names the first tensor of the networks that is not finite."""
        for part in ("network", "mixer", "target_network", "target_mixer"):
            for name, tensor in getattr(self, part).state_dict().items():
                if not torch.isfinite(tensor).all():
                    raise FloatingPointError(
                        f"{part}.{name} is not finite after update {self.updates}; it is not saved. Go back to the "
                        "last checkpoint, with a lower learning_rate or rewards of a smaller size"
                    )

    def _noise(self, batch: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Of this update, independent for each episode, agent and network: [B, N, H + A] for live and target."""
        if not self.network.noisy:
            return None, None
        rng = generator(self.seed, Stream.LEARNING_NOISE, self.updates)
        live, target = (
            torch.tensor(np.stack([self.network.draw_noise(rng) for _ in range(batch)]), device=self.device)
            for _ in range(2)
        )
        return live, target

    def _update_targets(self) -> None:
        tau = self.config.target_tau
        if tau is None:
            if self.updates % self.config.target_update_every:
                return
            tau = 1.0
        get_ema_multi_avg_fn(1 - tau)(self._target_parameters, self.parameters, None)

    def _check_finite(self, told: dict[str, float], batch: Batch, q_tot: torch.Tensor, targets: torch.Tensor) -> None:
        if all(math.isfinite(value) for value in told.values()):
            return
        quantity, value = next((name, value) for name, value in told.items() if not math.isfinite(value))
        named = (("network", self.network), ("mixer", self.mixer))
        gradients = {
            f"the gradient of {part}.{name}": parameter.grad
            for part, module in named
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        }
        seen = {"rewards": batch.rewards, "observations": batch.observations, "states": batch.states}
        chain = {**seen, "q_tot": q_tot, "targets": targets, **gradients}
        first = next((name for name, tensor in chain.items() if not torch.isfinite(tensor).all()), "the loss itself")
        raise FloatingPointError(
            f"{quantity} is {value} at update {self.updates + 1}; nothing was changed by it. The first tensor that is "
            f"not finite is {first}. Look for rewards or observations of extreme size, or lower learning_rate"
        )


def _sums(values: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
    """Sum over the played steps of each episode, [B]. A padded step is cut out, not multiplied by 0."""
    return values.masked_fill(filled.unsqueeze(-1) == 0, 0.0).sum(dim=(1, 2))
