"""PettingZoo's versioned module: it makes environments for both APIs, and is registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pettingzoo
import pytest
import torch
from pettingzoo.test import api_test
from torch import nn

from prune_env import FilterPruneEnv, filter_prune_v0


@pytest.fixture
def settings(trained: nn.Module, tmp_path: Path) -> dict[str, Any]:
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    return {"weights": tmp_path / "weights.pt", "reward_images": 50, "calibration_images": 200}


def test_parallel_env(settings: dict[str, Any]) -> None:
    assert isinstance(filter_prune_v0.parallel_env(**settings), FilterPruneEnv)


def test_env_passes_the_test_of_the_aec_api(settings: dict[str, Any]) -> None:
    env = filter_prune_v0.env(**settings)
    api_test(env, num_cycles=30)
    env.reset(seed=0)
    assert env.agents[0] == "conv_0"


@pytest.mark.skipif(not hasattr(pettingzoo, "make"), reason="PettingZoo has a registry since 1.27")
@pytest.mark.parametrize("kind", ["parallel", "aec"])
def test_it_is_registered(settings: dict[str, Any], kind: str) -> None:
    made = pettingzoo.make(kind, "prune_env/filter_prune_v0", **settings)
    assert made.metadata["name"] == "filter_prune_v0"
