"""What an agent sees: statistics of its layers, the state of the whole network, and which filters remain.

Every feature has a name and lies in [0, 1]. Letters: G agents, F features, A rates, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..pruning import Cost, Plan, PruningGroup, channels
from .budget import Budget

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
STATIC = (
    "depth",
    "kernel",
    "stride",
    "channels_in",
    "channels_out",
    "feature_map",
    "macs_share",
    "params_share",
    "members",
)
DYNAMIC = ("kept_ratio", "macs_share_now", "macs_ratio", "budget_distance", "rounds_left", "last_rate")
GLOBAL = ("macs_ratio", "params_ratio", "budget_distance", "rounds_left")


class Observer:
    """Turns (plan, last rates, rounds left) into arrays. Everything that does not move is computed once."""

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[PruningGroup],
        cost: Cost,
        budget: Budget,
        scores: Mapping[str, torch.Tensor],
    ) -> None:
        self._cost, self._budget, self._target = cost, budget, budget.target_macs
        self._full = np.array([group.filters for group in groups])
        self._full_macs, self._full_params = cost.macs(tuple(self._full)), cost.params(tuple(self._full))
        # Which layers' output filters an agent owns: [G, L].
        self._owns = np.array([[layer in group.layers for layer in cost.layers] for group in groups], dtype=np.float64)
        self._static = self._static_features(model, groups)  # [G, 9]
        ranked = [_ranked(scores[group.name]) for group in groups]
        # One after the other, so that one look-up serves all agents; where each begins: [G, 1].
        self._importance, self._mass = (np.concatenate(parts) for parts in zip(*ranked, strict=True))
        starts = np.concatenate(([0], np.cumsum(self._full)[:-1]))[:, None]
        self._importance_starts, self._mass_starts = starts, starts + np.arange(len(groups))[:, None]
        self.names: tuple[str, ...] = (
            *STATIC,
            *DYNAMIC,
            *(f"importance_q{int(100 * quantile)}" for quantile in QUANTILES),
            *(f"importance_lost_{rate:g}" for rate in budget.rates[1:]),  # rate 0 removes nothing
        )
        """Names of the F features of every agent's vector."""
        self.state_names: tuple[str, ...] = (
            *(f"{group.name}.{name}" for group in groups for name in self.names),
            *GLOBAL,
        )
        """Names of the entries of the state vector."""

    def observe(self, plan: Plan, last_rates: Sequence[float], rounds_left: float) -> np.ndarray:
        """A fresh float32 array [G, F]; `rounds_left` is a fraction of all rounds."""
        macs_ratio, _, distance = self._totals(plan)
        dynamic = np.empty((len(plan), len(DYNAMIC)))
        dynamic[:, 0] = plan / self._full
        dynamic[:, 1] = self.macs_shares(plan)
        dynamic[:, 2:5] = macs_ratio, distance, rounds_left
        dynamic[:, 5] = last_rates
        return np.concatenate((self._static, dynamic, self._profile(plan)), 1).clip(0, 1).astype(np.float32)

    def state(self, plan: Plan, last_rates: Sequence[float], rounds_left: float) -> np.ndarray:
        """All agents' vectors and the network's totals: a fresh float32 array [G * F + 4]."""
        macs_ratio, params_ratio, distance = self._totals(plan)
        totals = np.array((macs_ratio, params_ratio, distance, rounds_left), np.float32)
        return np.concatenate((self.observe(plan, last_rates, rounds_left).ravel(), totals))

    def macs_shares(self, plan: Plan) -> np.ndarray:
        """Each agent's share of the network's MACs: [G]."""
        layer_macs = np.asarray(self._cost.layer_macs(plan), np.float64)  # [L]
        return self._owns @ layer_macs / layer_macs.sum()

    def _totals(self, plan: Plan) -> tuple[float, float, float]:
        """MACs ratio, parameters ratio, and how much of the way to the budget is left (0 without a budget)."""
        macs_ratio = self._cost.macs(plan) / self._full_macs
        distance = (
            0.0 if self._target is None or self._target == 1 else (macs_ratio - self._target) / (1 - self._target)
        )
        return macs_ratio, self._cost.params(plan) / self._full_params, max(0.0, distance)

    def _profile(self, plan: Plan) -> np.ndarray:
        """Quantiles of the importance that remains, and its share that each rate above 0 would remove:
        [G, Q + A - 1]."""
        kept = np.asarray(plan)[:, None]  # [G, 1]
        places = np.round((1 - np.array(QUANTILES)) * (kept - 1)).astype(int)  # [G, Q]
        left = kept - self._budget.removable(plan)[:, 1:]  # [G, A - 1]
        mass, starts = self._mass, self._mass_starts
        lost = 1 - mass[starts + left] / mass[starts + kept]
        return np.concatenate((self._importance[self._importance_starts + places], lost), 1)

    def _static_features(self, model: nn.Module, groups: Sequence[PruningGroup]) -> np.ndarray:
        full = tuple(self._full)
        layer_macs = np.asarray(self._cost.layer_macs(full), np.float64)
        position = {layer: index for index, layer in enumerate(self._cost.layers)}
        rows = []
        for index, group in enumerate(groups):
            convs = [model.get_submodule(layer) for layer in group.layers]
            first: Any = convs[0]  # a convolution, or a linear layer that does the work of a 1x1
            pixels = layer_macs[position[group.layers[0]]] / first.weight.numel()
            params = sum(parameter.numel() for conv in convs for parameter in conv.parameters())
            rows.append(
                (
                    index / max(1, len(groups) - 1),
                    max(getattr(first, "kernel_size", (1,))),
                    max(getattr(first, "stride", (1,))),
                    channels(first, "in") or first.in_channels,
                    channels(first, "out"),
                    pixels**0.5,
                    self._owns[index] @ layer_macs / layer_macs.sum(),
                    params / self._full_params,
                    len(convs),
                )
            )
        static = np.array(rows, np.float64)
        for name in ("kernel", "stride", "channels_in", "channels_out", "feature_map", "members"):
            column = STATIC.index(name)
            static[:, column] /= static[:, column].max()
        return static


def _ranked(scores: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Importance in falling order as a fraction of the largest [C], and its running sum from 0 [C + 1]."""
    ordered = np.sort(scores.double().numpy())[::-1]
    ordered = ordered - min(0.0, ordered[-1])
    # A group whose filters all score 0 is flat: nothing tells one from another.
    ordered = ordered / ordered[0] if ordered[0] > 0 else np.ones_like(ordered)
    return ordered, np.concatenate(([0.0], np.cumsum(ordered)))
