"""The search methods keep their budget and repeat under one seed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.methods import METHODS
from prune_env import FilterPruneEnv


@pytest.mark.parametrize("method", METHODS)
def test_methods_keep_the_budget_and_repeat(make_env: Callable[..., FilterPruneEnv], method: str) -> None:
    first, second = (METHODS[method](make_env(), 8, 3) for _ in range(2))
    assert first.entries == second.entries
    assert len(first.entries) == (1 if method == "uniform" else 8)
    assert len({entry.plan for entry in first.entries}) == len(first.entries)
    assert all(0.49 <= entry.macs_ratio <= 0.5 for entry in first.entries)
    assert first.curve == sorted(first.curve)
