"""Plans that fit their groups, and those that do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prune_env.pruning import PruningGroup, check_plan

GROUPS = [
    PruningGroup("conv_0", ("left.0",), 8, ()),
    PruningGroup("conv_1", ("right.0", "other"), 12, ()),
    PruningGroup("conv_2", ("mix.0",), 6, ()),
]


@pytest.mark.parametrize("plan", [(8, 12, 6), (1, 1, 1), [3, 4, 5], torch.tensor([3, 4, 5])])
def test_plans_with_a_count_for_every_group(plan: Any) -> None:
    check_plan(GROUPS, plan)


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        ((4, 12), r"3.* 2$"),
        ((0, 12, 6), r"conv_0.*left\.0.*8.* 0$"),
        ((8, 13, 6), r"conv_1.*right\.0, other.*12.* 13$"),
        ((8, 2.5, 6), r"conv_1.* 2\.5$"),
    ],
)
def test_other_plans_are_refused(plan: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_plan(GROUPS, plan)


def test_a_mapping_is_no_plan() -> None:
    plan: Any = {"left.0": 8, "right.0": 12, "mix.0": 6}
    with pytest.raises(TypeError, match="dict"):
        check_plan(GROUPS, plan)
