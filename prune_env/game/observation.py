"""Observations: statistics of an agent's layers, the state of the network, and which filters remain.

Every entry has a name, lies in [0, 1], and means the same in every network: sizes are logarithms on fixed scales, and
all other entries are fractions. What a policy learns on one network can therefore hold in another.

Letters: G agents, F features, A rates, Q quantiles, L layers, C filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Any, NamedTuple

import numpy as np
import torch

from ..pruning import Plan, channels
from ..pruning.problem import PruningProblem
from .budget import Budget
from .costs import CostName
from .least_change import LeastChange

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
    "grouped",
    "agents",
)


def dynamic_names(cost: CostName) -> tuple[str, ...]:
    """Return the names of an agent's entries that change, in a game whose budget limits this cost."""
    return (
        "kept_ratio",
        "macs_share_now",
        "macs_slope",
        "macs_ratio",
        f"target_{cost}",
        f"{cost}_left",
        "budget_distance",
        "rounds_left",
        "last_rate",
        "proposed_rate",
        *(() if cost == "macs" else (f"{cost}_ratio", f"{cost}_slope")),
    )


def global_names(cost: CostName) -> tuple[str, ...]:
    """Return the names of the state's entries that describe the whole network."""
    return ("macs_ratio", "params_ratio", f"target_{cost}", "budget_distance", "rounds_left")


CHANGES = (-4, 1)
"""Powers of ten between which changes of the outputs are told apart."""


class Rounds(NamedTuple):
    """How far an episode is."""

    left: int
    """Rounds that remain."""
    per_episode: int
    """Rounds of an episode."""


class Observer:
    """Turns (budget, plan, last rates, rounds left) into arrays. Constant entries are computed once.

    In a game whose budget does not limit MACs, entries with the name of its cost stand for those of MACs.
    `feature_map` measures the output of a group's first layer, but the input of a transposed convolution.
    """

    def __init__(self, problem: PruningProblem, rules: Budget, least_change: LeastChange) -> None:
        groups, cost, self.rates = problem.groups, problem.cost, rules.rates
        self._dynamic = dynamic_names(rules.cost_name)
        self.totals = global_names(rules.cost_name)
        """Names of the state's entries that describe the whole network; they are its last ones."""
        self._cost, self._least_change = cost, least_change
        self._full = np.array([group.filters for group in groups])
        self._full_macs, self._full_params = cost.macs(tuple(self._full)), cost.params(tuple(self._full))
        # 1 where a layer's output filters belong to the group
        owns = [[layer in group.layers for layer in cost.layers] for group in groups]
        self._owns = np.array(owns, dtype=np.float64)  # [G, L]
        self._static = self._static_features(problem)  # [G, len(STATIC)]
        ranked = [_ranked(problem.scores[group.name]) for group in groups]
        self._changes = np.concatenate([curve[::-1] for curve in least_change.changes])  # by filters kept
        # Concatenated, so that one look-up serves all agents. The starts say where each agent's part begins, [G, 1].
        self._importance, self._mass = (np.concatenate(parts) for parts in zip(*ranked, strict=True))
        starts = np.concatenate(([0], np.cumsum(self._full)[:-1]))[:, None]
        self._importance_starts, self._mass_starts = starts, starts + np.arange(len(groups))[:, None]
        self.names: tuple[str, ...] = (
            *STATIC,
            *self._dynamic,
            *(f"importance_q{int(100 * quantile)}" for quantile in QUANTILES),
            *(f"importance_lost_{rate:g}" for rate in self.rates[1:]),  # rate 0 removes nothing
            *(f"output_change_{rate:g}" for rate in self.rates[1:]),
        )
        """Names of the F entries of every agent's observation."""
        self.state_names: tuple[str, ...] = (
            *(f"{group.name}.{name}" for group in groups for name in self.names),
            *self.totals,
        )
        """Names of the entries of the state vector."""

    def observe(self, budget: Budget, plan: Plan, last_rates: Sequence[float], rounds: Rounds) -> np.ndarray:
        """Return the observations as a new float32 array [G, F].

        Args:
            budget: The budget of the episode.
            plan: The current plan, [G].
            last_rates: Fraction of filters that each group lost in the last round, [G].
            rounds: Rounds that are left, and rounds of an episode.
        """
        now: dict[str, Any] = {
            "kept_ratio": plan / self._full,
            "macs_share_now": self.macs_shares(plan),
            "macs_slope": self._cost.macs_slopes(plan) / (2 * self._cost.macs(plan)),
            "last_rate": last_rates,
            "proposed_rate": self._proposed_rates(budget, plan, rounds.left),
            **self._totals(budget, plan, rounds),
        }
        if budget.cost_name != "macs":
            now[f"{budget.cost_name}_slope"] = self._cost_slopes(budget, plan)
        dynamic = np.empty((len(plan), len(self._dynamic)))
        for column, name in enumerate(self._dynamic):
            dynamic[:, column] = now[name]
        return np.concatenate((self._static, dynamic, self._profile(budget, plan)), 1).clip(0, 1).astype(np.float32)

    def state(self, budget: Budget, plan: Plan, last_rates: Sequence[float], rounds: Rounds) -> np.ndarray:
        """Return all observations and the network's totals as a new float32 array [S]."""
        totals = self._totals(budget, plan, rounds)
        values = np.array([totals[name] for name in self.totals], np.float32)
        return np.concatenate((self.observe(budget, plan, last_rates, rounds).ravel(), values))

    def macs_shares(self, plan: Plan) -> np.ndarray:
        """Return each agent's share of the network's MACs, [G]."""
        layer_macs = np.asarray(self._cost.layer_macs(plan), np.float64)  # [L]
        return self._owns @ layer_macs / layer_macs.sum()

    @staticmethod
    def _cost_slopes(budget: Budget, plan: Plan) -> np.ndarray:
        """Return n / (2 C) * dC/dn for the filters n of every group and the cost C, like `macs_slope`: [G]."""
        now = np.asarray(plan, np.int64)
        step = -(-now // 8)  # one filter alone may be cheaper than the cost function can tell
        saved = budget.cost(now) - budget.cost(now - np.diag(step))
        return saved * now / step / (2 * budget.cost(now))

    def _proposed_rates(self, budget: Budget, plan: Plan, rounds_left: int) -> np.ndarray:
        """Return the rates that, repeated in every round that is left, lead to the least-change plan, [G]."""
        if budget.target is None or not rounds_left:
            return np.zeros(len(plan))
        wanted = np.minimum(self._least_change.plan(budget.target), plan)
        return 1 - (wanted / np.asarray(plan)) ** (1 / rounds_left)

    def _totals(self, budget: Budget, plan: Plan, rounds: Rounds) -> dict[str, float]:
        """Return the entries that describe the whole network and the episode."""
        target, ratio, cost = 1.0 if budget.target is None else budget.target, budget.ratio(plan), budget.cost_name
        return {
            "macs_ratio": self._cost.macs(plan) / self._full_macs,
            "params_ratio": self._cost.params(plan) / self._full_params,
            f"{cost}_ratio": ratio,
            f"target_{cost}": target,
            f"{cost}_left": target / ratio,
            "budget_distance": budget.distance(ratio),
            "rounds_left": rounds.left / rounds.per_episode,
        }

    def _profile(self, budget: Budget, plan: Plan) -> np.ndarray:
        """Return quantiles of the remaining importance, and what each rate above 0 would remove and change.

        Shape [G, Q + 2 (A - 1)].
        """
        kept = np.asarray(plan)[:, None]  # [G, 1]
        places = np.round((1 - np.array(QUANTILES)) * (kept - 1)).astype(int)  # [G, Q]
        left = kept - budget.removable(plan)[:, 1:]  # [G, A - 1]
        mass, starts = self._mass, self._mass_starts
        lost = 1 - mass[starts + left] / mass[starts + kept]
        change = self._changes[starts + left] - self._changes[starts + kept]
        lowest, highest = CHANGES
        change = np.log10(change.clip(10.0**lowest, 10.0**highest))
        change = (change - lowest) / (highest - lowest)
        return np.concatenate((self._importance[self._importance_starts + places], lost, change), 1)

    def _static_features(self, problem: PruningProblem) -> np.ndarray:
        full = tuple(self._full)
        layer_macs = np.asarray(self._cost.layer_macs(full), np.float64)
        position = {layer: index for index, layer in enumerate(self._cost.layers)}
        rows = []
        for index, group in enumerate(problem.groups):
            convs = [problem.model.get_submodule(layer) for layer in group.layers]
            first: Any = convs[0]  # a convolution, or a linear layer, which acts as a 1x1 convolution
            pixels = layer_macs[position[group.layers[0]]] / first.weight.numel()
            params = sum(parameter.numel() for conv in convs for parameter in conv.parameters())
            row = {
                "depth": index / max(1, len(problem.groups) - 1),
                "kernel": log2(max(getattr(first, "kernel_size", (1,)))) / 4,
                "stride": log2(max(getattr(first, "stride", (1,)))) / 3,
                "channels_in": log2(channels(first, "in") or first.in_channels) / 12,
                "channels_out": log2(channels(first, "out")) / 12,
                "feature_map": log2(pixels**0.5) / 8,
                "macs_share": self._owns[index] @ layer_macs / layer_macs.sum(),
                "params_share": params / self._full_params,
                "members": 1 - 1 / len(convs),
                "grouped": 1 - 1 / getattr(first, "groups", 1),
                "agents": log2(len(problem.groups)) / 10,
            }
            rows.append([row[name] for name in STATIC])
        return np.array(rows, np.float64)


def _ranked(scores: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return importance in falling order as a fraction of the largest [C], and its running sum from 0 [C + 1]."""
    ordered = np.sort(scores.double().numpy())[::-1]
    ordered = ordered - min(0.0, ordered[-1])
    # If all filters score 0, all are equally important.
    ordered = ordered / ordered[0] if ordered[0] > 0 else np.ones_like(ordered)
    return ordered, np.concatenate(([0.0], np.cumsum(ordered)))
