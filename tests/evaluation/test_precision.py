"""The precision of an evaluation is a setting, and networks that do not run in bfloat16 run in float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from episodes import FAST, play
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits
from prune_env.evaluation.config import EvaluationConfig
from prune_env.training.config import FitConfig
from prune_env.training.distillation import DistillationConfig, Teacher, distil
from prune_env.training.fit import RunOptions, fit

QUIET = RunOptions(progress=False)


class Between(nn.Module):
    """Does something between two convolutions."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.between(self.norm(self.first(x)).relu())
        return self.head(self.second(x).relu().mean((2, 3)))


def without_autocast(x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return x.float() * 1


POSITIONS = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
FLOAT32_INSIDE = {
    "cast": lambda x: x.float(),
    "half": lambda x: x.half().float(),
    "tensor": lambda x: x + POSITIONS,
    "zeros": lambda x: x + torch.zeros(1, 8, 1, 1),
    "autocast": without_autocast,
    "fft": lambda x: torch.fft.ifft2(torch.fft.fft2(x)).real,
    "index_put": lambda x: torch.zeros(x.shape).index_put((torch.arange(len(x)),), x),
}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every machine choose bfloat16."""
    for place in ("evaluation.live", "training.distillation", "training.trainable"):
        monkeypatch.setattr(f"prune_env.{place}.fast_dtype", lambda _: torch.bfloat16)


def named(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in caught if "bfloat16" in str(warning.message)]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("kind", FLOAT32_INSIDE)
def test_float32_is_used_where_bfloat16_fails(digits: DataSplits, kind: str) -> None:
    network = Between(FLOAT32_INSIDE[kind]).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = FilterPruneEnv.from_model(network, digits, EnvConfig(**FAST))
    assert len(named(caught)) == 1
    assert ("second (Conv2d)" in named(caught)[0]) == (kind not in ("fft", "index_put"))
    play(env)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exact = FilterPruneEnv.from_model(network, digits, EnvConfig(**FAST, precision="fp32"))
    assert not named(caught)
    assert env.evaluator.original_accuracy == exact.evaluator.original_accuracy
    with pytest.raises(ValueError, match="precision='bf16'"):
        FilterPruneEnv.from_model(network, digits, EnvConfig(**FAST, precision="bf16"))


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("settings", [{}, {"finetune_batches": 1}, {"round_finetune_batches": 1}])
def test_ordinary_networks_get_no_warning(digits: DataSplits, settings: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        play(FilterPruneEnv.from_model(Between(torch.relu).eval(), digits, EnvConfig(**FAST, **settings)))
    assert not named(caught)


@pytest.mark.usefixtures("fast")
def test_training_uses_float32_where_autocast_fails(digits: DataSplits) -> None:
    network, settings = Between(FLOAT32_INSIDE["index_put"]), {"epochs": 0.1, "min_steps": 0}
    with pytest.warns(UserWarning, match="bfloat16"):
        trained = fit(network, digits, FitConfig(epochs=0.1), run=QUIET)
    exact = fit(network, digits, FitConfig(epochs=0.1, precision="fp32"), run=QUIET)
    assert torch.equal(trained.head.weight, exact.head.weight)  # type: ignore[union-attr,arg-type]
    with pytest.raises(ValueError, match="precision='bf16'"):
        fit(network, digits, FitConfig(epochs=0.1, precision="bf16"), run=QUIET)
    teacher = Between(FLOAT32_INSIDE["index_put"])
    with pytest.warns(UserWarning, match="bfloat16"):
        distil(Between(torch.relu), teacher, digits, DistillationConfig(**settings), run=QUIET)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision='bf16'"):
        Teacher(teacher, precision="bf16")(digits.example_input)


@pytest.mark.usefixtures("fast")
def test_the_setting_belongs_to_the_fingerprint(digits: DataSplits) -> None:
    network = Between(torch.relu).eval()
    envs = [FilterPruneEnv.from_model(network, digits, EnvConfig(**FAST, precision=p)) for p in ("bf16", "fp32")]  # type: ignore[arg-type]
    assert envs[0].fingerprint != envs[1].fingerprint


@pytest.mark.parametrize("config", [EvaluationConfig, EnvConfig, FitConfig, DistillationConfig])
@pytest.mark.parametrize("wrong", ["float32", "", None, torch.float32])
def test_other_precisions_are_refused(config: Any, wrong: object) -> None:
    with pytest.raises(ValueError, match="precision"):
        config(precision=wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_precisions_are_trained_in_float32(digits: DataSplits, dtype: torch.dtype) -> None:
    network = Between(torch.relu).to(dtype)
    for trained in (
        fit(network, digits, FitConfig(epochs=0.1), run=QUIET),
        distil(network, network, digits, DistillationConfig(epochs=0.1, min_steps=0), run=QUIET),
    ):
        assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
