"""Small models of networks for tests of the budget: MACs of layer l are coefficient_l * in_l(plan) * out_l(plan)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st

from prune_env.game.budget import Budget, IntArray
from prune_env.pruning.limits import Limits

RATES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)


@dataclasses.dataclass(frozen=True)
class Network:
    """Layers as (coefficient, input group, output group). A group is an index, or a fixed count as a string."""

    layers: tuple[tuple[int, int | str, int | str], ...]
    full: tuple[int, ...]

    def macs(self, plans: IntArray) -> IntArray:
        plans = np.asarray(plans, np.int64)

        def channels(side: int | str) -> IntArray | int:
            return int(side) if isinstance(side, str) else plans[..., side]

        costs = [coefficient * channels(ins) * channels(outs) for coefficient, ins, outs in self.layers]
        return np.asarray(sum(costs), np.int64)

    def ratio(self, plan: tuple[int, ...]) -> float:
        return int(self.macs(np.array(plan))) / int(self.macs(np.array(self.full)))

    def budget(self, target: float | None = 0.5, rates: tuple[float, ...] = RATES, **limits: Any) -> Budget:
        return Budget(self.macs, self.full, rates, target, Limits(**limits))


def chain(full: tuple[int, ...], maps: tuple[int, ...]) -> Network:
    """Return a plain network: 3 input channels, 3x3 convolutions on maps of these sizes, 10 classes."""
    sides: list[int | str] = ["3", *range(len(full))]
    layers = [(9 * size**2, sides[index], index) for index, size in enumerate(maps)]
    return Network((*layers, (1, len(full) - 1, "10")), full)


def residual(full: tuple[int, ...], maps: tuple[int, ...]) -> Network:
    """Return a residual network: group 0 is the stream that all additions share, every other group is in one block."""
    layers: list[tuple[int, int | str, int | str]] = [(9 * max(maps) ** 2, "3", 0), (1, 0, "10")]
    for inner, size in enumerate(maps[1:], 1):
        layers += [(9 * size**2, 0, inner), (9 * size**2, inner, 0)]
    return Network(tuple(layers), full)


VGG16 = chain(
    (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512), (32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2)
)
# Its MACs are 10 a + b, 110 in all: small enough to apply the rules by hand.
BY_HAND = Network(((10, 0, "1"), (1, 1, "1")), (10, 10))
EQUAL_COSTS = Network(((1, 0, "1"), (1, 1, "1")), (10, 10))


@st.composite
def networks(draw: st.DrawFn, fewest: int = 24, most: int = 96, groups: tuple[int, int] = (5, 10)) -> Network:
    count = draw(st.integers(*groups))
    full = draw(st.lists(st.integers(fewest, most), min_size=count, max_size=count).map(tuple))
    maps = draw(st.lists(st.sampled_from((4, 8, 16)), min_size=count, max_size=count).map(tuple))
    return draw(st.sampled_from((chain, residual)))(full, maps)


def episode(budget: Budget, actions: list[list[int]]) -> list[tuple[int, ...]]:
    """Return the plans of an episode, the full plan first."""
    plans = [budget.full_plan]
    for number, row in enumerate(actions, 1):
        wanted = budget.apply(plans[-1], row[: len(budget.full_plan)])
        plans.append(budget.project(plans[-1], wanted, last=number == len(actions)))
    return plans


episodes_of_actions = st.lists(
    st.lists(st.integers(0, len(RATES) - 1), min_size=10, max_size=10), min_size=1, max_size=4
)
# Teams that remove little: random actions alone would nearly always overshoot.
few_removals = st.lists(st.lists(st.sampled_from((0, 0, 0, 1, 2)), min_size=10, max_size=10), min_size=1, max_size=4)
