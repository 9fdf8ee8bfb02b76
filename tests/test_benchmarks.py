"""The search methods keep their budget and repeat under one seed; our side of the comparison with AMC."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import amc_speed
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


def test_our_side_of_the_comparison_with_amc_times_new_plans_only(make_env: Callable[..., FilterPruneEnv]) -> None:
    env, rng = make_env(), np.random.default_rng(0)
    before = env.evaluator.evaluations
    seconds = amc_speed.play_ours(env, 3, rng) + amc_speed.play_ours(env, 2, rng)
    assert len(seconds) == len(env.archive) == env.evaluator.evaluations - before == 5
    assert min(seconds) > 0


def test_amc_must_be_there_and_patched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no clone of AMC's repository: .*channel_pruning_env\.py does not exist"):
        amc_speed.load_amc(tmp_path)
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "channel_pruning_env.py").write_text("model.cuda()")
    with pytest.raises(ValueError, match="patch the clone"):
        amc_speed.load_amc(tmp_path)
