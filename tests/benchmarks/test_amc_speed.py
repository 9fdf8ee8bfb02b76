"""Our side of the comparison with AMC's released environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import amc as amc_speed
from prune_env import FilterPruneEnv


def test_our_side_of_the_comparison_with_amc_times_new_plans_only(make_env: Callable[..., FilterPruneEnv]) -> None:
    env, rng = make_env(), np.random.default_rng(0)
    before = env.evaluator.evaluations
    seconds = amc_speed.play_ours(env, 3, rng) + amc_speed.play_ours(env, 2, rng)
    assert len(seconds) == len(env.archive) == env.evaluator.evaluations - before == 5
    assert min(seconds) > 0


def test_amc_must_be_there_and_patched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"channel_pruning_env\.py"):
        amc_speed.load_amc(tmp_path)
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "channel_pruning_env.py").write_text("model.cuda()")
    with pytest.raises(ValueError, match=r"channel_pruning_env\.py.*cuda"):
        amc_speed.load_amc(tmp_path)
