"""Environments from names: flat settings are sorted, and unknown ones are refused with a suggestion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prune_env import EnvConfig, make_env
from prune_env.data import DataSplits
from prune_env.evaluation.resources import Resources
from prune_env.game.make import split_settings


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a network is loaded or trained."""

    def fails(*_: Any, **__: Any) -> Any:
        raise AssertionError("a network was trained before the error")

    monkeypatch.setattr("prune_env.game.make.pretrained", fails)


def test_settings_are_split_into_config_and_resources() -> None:
    config, resources = split_settings({"target_macs": 0.3, "backend": "processes", "workers": 2, "rounds": 5})
    assert config == EnvConfig(target_macs=0.3, rounds=5)
    assert resources == Resources(backend="processes", workers=2)
    assert split_settings({}) == (EnvConfig(), Resources())


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("target_mac", "'target_macs'"),
        ("finetune_batch", "'finetune_batches'"),
        ("worker", "'workers'"),
        ("xyz", "target_macs.*cache"),
    ],
)
def test_an_unknown_setting_suggests_a_known_one(name: str, suggestion: str) -> None:
    with pytest.raises(TypeError, match=f"'{name}'.*{suggestion}"):
        split_settings({"rounds": 3, name: 1})


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"target_mac": 0.5}, TypeError, "'target_mac'"),
        ({"target_macs": None}, ValueError, "target_macs"),
        ({"target_macs": 2}, ValueError, "target_macs"),
        ({"render_mode": "human"}, ValueError, "render_mode 'human'"),
        ({"backend": "cloud"}, ValueError, "backend .*'cloud'"),
        ({"workers": 2}, ValueError, "workers=2"),
        ({"device": "nowhere"}, ValueError, "device 'nowhere'"),
    ],
)
@pytest.mark.usefixtures("no_training")
def test_wrong_settings_are_refused_before_a_network_is_trained(
    settings: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        make_env("small_cnn", **settings)


@pytest.mark.usefixtures("no_training")
def test_wrong_types_are_refused_before_a_network_is_trained(trained: nn.Module, digits: DataSplits) -> None:
    with pytest.raises(TypeError, match=r"network .*SmallCNN.*FilterPruneEnv"):
        make_env(trained)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"data .*Tensor.*from_tensors"):
        make_env("small_cnn", digits.train.images)  # type: ignore[arg-type]


def test_settings_reach_the_environment(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> None:
    weights, cache = tmp_path / "weights.pt", tmp_path / "plans.sqlite"
    torch.save(trained.state_dict(), weights)
    settings = {"weights": weights, "cache": cache, "render_mode": "ansi", "reward_images": 50, "rounds": 2}
    env = make_env("small_cnn", digits, **settings)  # type: ignore[arg-type]
    assert env.config == EnvConfig(reward_images=50, rounds=2)
    assert env.render_mode == "ansi"
    assert cache.is_file()
    for name, tensor in trained.state_dict().items():
        assert torch.equal(env.problem.model.state_dict()[name], tensor)
