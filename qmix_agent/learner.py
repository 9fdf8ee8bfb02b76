"""The temporal-difference update.

Shapes: B episodes, T steps, N agents, I input features, A actions, S state features, M learned values (1 for a team, N
for iql).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .config import QMIXConfig
from .mixers import make_mixer
from .networks import AgentNetwork
from .return_scale import ReturnScale
from .seeding import Stream, make_seed
from .targets import greedy_values, td_targets
from .types import Batch, EnvSpec

NETWORKS = ("network", "mixer", "target_network", "target_mixer")


@dataclass(frozen=True)
class UpdateMetrics:
    """Metrics of one update, or their means over several updates."""

    loss: float
    """Mean loss over the played steps."""
    q_tot: float
    """Mean value of the actions taken."""
    td_error: float
    """Mean absolute temporal-difference error."""
    grad_norm: float
    """Euclidean norm of the gradient before clipping."""

    @classmethod
    def mean(cls, metrics: Sequence[UpdateMetrics]) -> UpdateMetrics:
        """Return the mean of each metric."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: sum(getattr(one, name) for one in metrics) / len(metrics) for name in names})


def check_shapes(spec: EnvSpec, config: QMIXConfig, state: Mapping[str, Any]) -> None:
    """Check that weights have the sizes that settings claim, before anything of these sizes is made.

    Raises:
        ValueError: A tensor has another shape; the message names it.
        KeyError: A tensor is missing.
    """
    with torch.device("meta"):
        networks = {"network": AgentNetwork(spec, config), "mixer": make_mixer(spec, config)}
    for name, network in networks.items():
        for key, tensor in network.state_dict().items():
            if (found := tuple(state[name][key].shape)) != tuple(tensor.shape):
                raise ValueError(f"{name}.{key} has shape {found}, its settings need {tuple(tensor.shape)}")


class Learner:
    """The online networks, their target networks, and the optimizer.

    Args:
        spec: Specification of the environment.
        config: Settings.
        seed: Seed of the initial weights.
        device: Device of the networks.
    """

    def __init__(self, spec: EnvSpec, config: QMIXConfig, seed: int, device: torch.device | str) -> None:
        self.config, self.device = config, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(make_seed(seed, Stream.WEIGHTS))
            self.network = AgentNetwork(spec, config).to(self.device)
            self.mixer = make_mixer(spec, config).to(self.device)
        self.target_network = copy.deepcopy(self.network).requires_grad_(False)
        self.target_mixer = copy.deepcopy(self.mixer).requires_grad_(False)
        for module in self.target_network.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # cuDNN needs contiguous weights, and a deep copy does not preserve that
        self.parameters = [*self.network.parameters(), *self.mixer.parameters()]
        self._target_parameters = [*self.target_network.parameters(), *self.target_mixer.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate, fused=True)
        self.updates = 0

    def q_and_targets(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the values of the actions taken and their targets, both [B, T, M]; only the former have a gradient."""
        q_tot, inputs, online_q, hidden = team_values(self.network, self.mixer, batch)
        with torch.no_grad():
            # The values after the last step only take part in the argmax, so they need no gradient.
            final_q, _ = self.network.values(inputs[-1:], hidden)
            next_online_q = torch.cat([online_q[1:], final_q]).transpose(0, 1)  # [B, T, N, A]
            next_target_q = self.target_network.values(inputs)[0][1:].transpose(0, 1)  # [B, T, N, A]
            targets = self._targets(batch, next_online_q, next_target_q)
        return q_tot, targets

    def _targets(self, batch: Batch, next_online_q: torch.Tensor, next_target_q: torch.Tensor) -> torch.Tensor:
        """Return the targets [B, T, M] from the action values after each step, [B, T, N, A]."""
        config, after = self.config, batch.after
        best = greedy_values(next_online_q, next_target_q, batch.action_masks[:, 1:], config.double_q)  # [B, T, N]
        if config.off_policy_correction and config.td_lambda > 0 and config.n_step != 1:
            next_actions = functional.pad(batch.actions[:, 1:], (0, 0, 0, 1))  # no action follows the last step
            taken = _taken(next_target_q, next_actions)  # [B, T, N]
            # One call mixes both, so that the mixing weights are computed once.
            mixed = self.target_mixer(torch.stack([best, taken]), after)  # [2, B, T, M]
            return td_targets(batch.rewards, batch.terminated, batch.filled, mixed[0], config, next_taken=mixed[1])
        next_values = self.target_mixer(best, after)  # [B, T, M]
        return td_targets(batch.rewards, batch.terminated, batch.filled, next_values, config)

    def loss(self, q_tot: torch.Tensor, targets: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over the played steps.

        Args:
            q_tot: Values of the actions taken, [B, T, M].
            targets: Targets, [B, T, M].
            filled: 1 for played steps and 0 for padding, [B, T].

        Returns:
            The loss, [].
        """
        if self.config.loss == "huber":
            losses = functional.huber_loss(q_tot, targets, reduction="none")
        else:
            losses = functional.mse_loss(q_tot, targets, reduction="none")
        return _sum_played(losses, filled) / (filled.sum() * q_tot.shape[-1])

    def update(self, batch: Batch, scale: ReturnScale | None = None) -> UpdateMetrics:
        """Take one step of Adam and update the target networks.

        Args:
            batch: Padded episodes.
            scale: Scale of the returns with which to standardise the rewards; None learns from the rewards themselves.

        Returns:
            Metrics of the update.

        Raises:
            FloatingPointError: The loss or the gradient is not finite. No weight is changed.
        """
        if scale is not None:
            rewards = scale.standardise(batch.rewards, batch.terminated, self.config.gamma)
            batch = dataclasses.replace(batch, rewards=rewards)
        q_tot, targets = self.q_and_targets(batch)
        loss = self.loss(q_tot, targets, batch.filled)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.get_total_norm([one.grad for one in self.parameters if one.grad is not None])
        metrics = self._metrics(loss, grad_norm, q_tot.detach(), targets, batch.filled)
        if not math.isfinite(metrics.loss) or not math.isfinite(metrics.grad_norm):
            self._raise_not_finite(metrics, batch, q_tot, targets)
        nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, grad_norm)
        self.optimizer.step()
        self.updates += 1
        self._update_targets()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that an update depends on or changes."""
        networks = {name: getattr(self, name).state_dict() for name in NETWORKS}
        return copy.deepcopy({**networks, "optimizer": self.optimizer.state_dict(), "updates": self.updates})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`. Its tensors are copied."""
        for name in NETWORKS:
            getattr(self, name).load_state_dict(state[name])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.updates = state["updates"]

    def require_finite(self) -> None:
        """Raise FloatingPointError that names the first tensor of the networks that is not finite, if there is one."""
        for network in NETWORKS:
            for name, tensor in getattr(self, network).state_dict().items():
                if not torch.isfinite(tensor).all():
                    raise FloatingPointError(
                        f"{network}.{name} is not finite after update {self.updates}, so nothing is saved; resume from "
                        "the last checkpoint with a lower learning_rate or smaller rewards"
                    )

    @staticmethod
    def _metrics(
        loss: torch.Tensor, grad_norm: torch.Tensor, q_tot: torch.Tensor, targets: torch.Tensor, filled: torch.Tensor
    ) -> UpdateMetrics:
        count = filled.sum() * q_tot.shape[-1]
        values = {
            "loss": loss.detach(),
            "q_tot": _sum_played(q_tot, filled) / count,
            "td_error": _sum_played((q_tot - targets).abs(), filled) / count,
            "grad_norm": grad_norm,
        }
        # One device-to-host copy for all metrics; each .item() would synchronise.
        return UpdateMetrics(**dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True)))

    def _update_targets(self) -> None:
        tau = self.config.target_tau
        if tau is None:
            if self.updates % self.config.target_update_every:
                return
            tau = 1.0
        get_ema_multi_avg_fn(1 - tau)(self._target_parameters, self.parameters, None)

    def _raise_not_finite(
        self, metrics: UpdateMetrics, batch: Batch, q_tot: torch.Tensor, targets: torch.Tensor
    ) -> None:
        """Name the first tensor of the computation that is not finite."""
        name = "grad_norm" if math.isfinite(metrics.loss) else "loss"
        inputs = {"rewards": batch.rewards, "observations": batch.observations, "states": batch.states}
        gradients = {
            f"the gradient of {module}.{parameter_name}": parameter.grad
            for module in ("network", "mixer")
            for parameter_name, parameter in getattr(self, module).named_parameters()
            if parameter.grad is not None
        }
        computation = {**inputs, "q_tot": q_tot, "targets": targets, **gradients}
        first = next((key for key, tensor in computation.items() if not torch.isfinite(tensor).all()), "the loss")
        raise FloatingPointError(
            f"{name} is {getattr(metrics, name)} at update {self.updates + 1}, so no weight was changed; the first "
            f"tensor that is not finite is {first}. Look for extreme rewards or observations, or lower learning_rate"
        )


class TeamValues(NamedTuple):
    """The values of a batch's actions, and what they were computed from."""

    q_tot: torch.Tensor
    """Values of the actions taken, [B, T, M]."""
    inputs: torch.Tensor
    """The agents' inputs, also those after the last step, [T+1, B, N, I]."""
    agent_values: torch.Tensor
    """Values of all actions before each step, [T, B, N, A]."""
    hidden: torch.Tensor | None
    """Recurrent state after the last step."""


def team_values(network: AgentNetwork, mixer: nn.Module, batch: Batch) -> TeamValues:
    """Return the values of the actions taken, and what they were computed from."""
    last_actions = functional.pad(batch.actions, (0, 0, 1, 0), value=-1)  # [B, T+1, N]
    inputs = network.inputs(batch.observations, last_actions)
    agent_values, hidden = network.values(inputs[:-1])
    taken = _taken(agent_values.transpose(0, 1), batch.actions)  # [B, T, N]
    return TeamValues(mixer(taken, batch.before), inputs, agent_values, hidden)


def _taken(q: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Return the values [..., N] of actions [..., N] from all action values [..., N, A]."""
    return q.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def _sum_played(values: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
    """Sum values [B, T, M] over the played steps of each episode, then over episodes.

    Padding is replaced by 0 instead of multiplied by 0, because it may not be finite.
    """
    return values.masked_fill(filled.unsqueeze(-1) == 0, 0.0).sum(dim=(1, 2)).sum()
