"""Masking filters equals cutting them, also with recalibrated BatchNorm."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structures import KINDS, random_network
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.make.zoo import make
from prune_env.evaluation.engine.cuda_recording import masking_fault
from prune_env.evaluation.engine.masked import MaskedNetwork
from prune_env.networks import list_networks
from prune_env.pruning import PruningGroup, build, inspect
from prune_env.pruning.groups import Member
from prune_env.scoring.batchnorm import recalibrate


def check(model: nn.Module, images: torch.Tensor, seed: int = 0) -> None:
    """Compare masked and cut networks for several plans, and check that the model does not change."""
    before = copy.deepcopy(model.state_dict())
    groups = list(inspect(model, images, prove=False).groups)
    generator = torch.Generator().manual_seed(seed)
    ranking = {group.name: torch.randperm(group.filters, generator=generator) for group in groups}
    masked = MaskedNetwork(model, groups, ranking, dtype=torch.float32)
    full = tuple(group.filters for group in groups)
    some = tuple(int(torch.randint(1, count + 1, (), generator=generator)) for count in full)
    for plan in (some, full, tuple(1 for _ in full)):
        cut = build(model, groups, ranking, plan).eval()
        recalibrate(cut, (images, 2 * images))
        masked.load(plan)
        masked.apply()
        recalibrate(masked.network, (images, 2 * images))
        with torch.inference_mode():
            found, expected = masked.network(images), cut(images)
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", [*list_networks(), "resnet18", "shufflenet_v2_x0_5"])
def test_masked_networks_equal_cut_ones(name: str) -> None:
    model, images = make(name)
    images = images.tile(2, 1, 1, 1)[:, :, :64, :64]
    check(model, images)
    assert masking_fault(model, inspect(model, images, prove=False).groups, images) is None


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.sampled_from(sorted(set(KINDS) - {"HardReshape"})), min_size=1, max_size=4),
    seed=st.integers(0, 10_000),
)
def test_masked_random_networks_equal_cut_ones(kinds: list[str], seed: int) -> None:
    model, images = random_network(kinds, "mean", seed)
    check(model, images.tile(4, 1, 1, 1), seed)


def test_batchnorm_stays_in_eval_mode_and_float32() -> None:
    model, images = make("resnet20")
    groups = inspect(model, images, prove=False).groups
    ranking = {group.name: torch.arange(group.filters) for group in groups}
    masked = MaskedNetwork(model, groups, ranking, dtype=torch.bfloat16)
    recalibrate(masked.network, (images.bfloat16(),))
    norms = [module for module in masked.network.modules() if isinstance(module, _BatchNorm)]
    assert not any(norm.training for norm in norms)
    assert {norm.running_var.dtype for norm in norms} == {torch.float32}


class ChannelMean(nn.Module):
    """Computes a mean over channels, in which a masked filter counts and a cut one does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean(1).flatten(1))


def test_a_network_that_cannot_be_masked_is_found() -> None:
    conv = Member("conv", "out", torch.arange(8)[:, None])
    group = PruningGroup("conv_0", ("conv",), 8, (conv,))
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert "(4,)" in (masking_fault(ChannelMean().eval(), [group], images) or "")


def test_a_plan_that_does_not_fit_is_refused() -> None:
    model, images = make("small_cnn")
    groups = inspect(model, images.tile(2, 1, 1, 1), prove=False).groups
    masked = MaskedNetwork(model, groups, {g.name: torch.arange(g.filters) for g in groups}, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"conv_0.*33"):
        masked.load(tuple(group.filters + 1 for group in groups))
