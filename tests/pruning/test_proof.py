"""Cutting filters equals masking them, and groups for which it does not are found."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structures import hooks
from torch import nn
from torch.nn import functional as F

from prune_env.pruning import (
    Member,
    PruningError,
    PruningGroup,
    build_from_indices,
    find_groups,
    inspect,
    masked,
    prove,
)
from prune_env.pruning.proof import INVISIBLE, NOT_THE_SAME, proven_and_failed

NETWORKS = ["small_cnn", "resnet20", "flatten", "concat", "dense", "depthwise", "gated", "reused"]
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("alexnet", "vgg16", "resnet56")]


@pytest.mark.parametrize("name", [*NETWORKS, *LARGE])
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 1000))
def test_cutting_equals_masking(make: Any, name: str, seed: int) -> None:
    model, images = make(name)
    groups = find_groups(model, images)
    differences = prove(model, groups, images, plans_per_group=1, seed=seed)
    assert list(differences) == [*(group.name for group in groups), "joint"]
    assert max(differences.values()) < 1e-5


def test_cutting_equals_masking_for_a_ranking(make: Any) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    ranking = {group.name: torch.arange(group.filters).flip(0) for group in groups}
    assert max(prove(model, groups, images, ranking).values()) < 1e-5


def test_masking_is_not_the_same_as_zero_weights(make: Any) -> None:
    """Behind a BatchNorm with beta != 0, a filter of zeros still has an effect."""
    model, images = make("small_cnn")
    model.eval()
    (group, *_) = groups = find_groups(model, images)
    keep = {g.name: list(range(g.filters)) for g in groups} | {group.name: list(range(0, group.filters, 2))}
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        zeroed.get_submodule(group.layers[0]).weight[1::2] = 0
        missing = build_from_indices(model, groups, keep)(images)
        with masked(model, groups, keep):
            assert torch.allclose(model(images), missing, atol=1e-5)
        assert (zeroed(images) - missing).abs().max() > 1e-3


def test_masking_ends_with_its_block(make: Any) -> None:
    model, images = make("small_cnn")
    model.eval()
    groups = find_groups(model, images)
    before = model(images)
    keep = {group.name: [0] for group in groups}
    with masked(model, groups, keep) as network:
        assert network is model
        assert not torch.allclose(model(images), before)
    assert torch.equal(model(images), before)
    with pytest.raises(RuntimeError), masked(model, groups, keep):
        model(images[:, :, :1, :1])
    assert torch.equal(model(images), before)
    assert not hooks(model)


def test_the_model_does_not_change(make: Any) -> None:
    model, images = make("resnet20")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    proven_and_failed(model, find_groups(model, images), images)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not hooks(model)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())


def with_member(group: PruningGroup, module: str, change: Any) -> PruningGroup:
    return replace(group, members=tuple(change(m) if m.module == module else m for m in group.members))


def rolled(member: Member) -> Member:
    return replace(member, index=member.index.roll(1, 0))


@pytest.mark.parametrize(
    ("name", "number", "module"),
    [
        ("concat", 0, "mix.0"),
        ("concat", 1, "right.1"),
        ("flatten", 0, "linear"),
        ("depthwise", 1, "depthwise"),
        ("resnet20", 5, "layer2.0.shortcut"),
    ],
)
def test_a_wrong_index_is_found(make: Any, name: str, number: int, module: str) -> None:
    model, images = make(name)
    groups = find_groups(model, images)
    groups[number] = bad = with_member(groups[number], module, rolled)
    differences = prove(model, groups, images)
    assert differences[bad.name] > 1e-4
    assert differences["joint"] > 1e-4
    assert all(value < 1e-4 for key, value in differences.items() if key not in (bad.name, "joint"))
    proven, (failed,), kept = proven_and_failed(model, groups, images)
    assert failed.layers == bad.layers
    assert NOT_THE_SAME in failed.reason
    assert [group.layers for group in proven] == [group.layers for group in groups if group is not bad]
    assert [group.name for group in proven] == [f"conv_{place}" for place in range(len(groups) - 1)]
    assert list(kept) == [*(group.name for group in proven), *(["joint"] if proven else [])]
    assert all(value < 1e-4 for value in kept.values())


def test_without_a_member_the_cut_network_does_not_run(make: Any) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    groups[0] = replace(groups[0], members=groups[0].members[:-1])
    assert prove(model, groups, images)["conv_0"] == float("inf")
    proven, (failed,), _ = proven_and_failed(model, groups, images)
    assert [group.layers for group in proven] == [("right.0",), ("mix.0",)]
    assert failed.layers == ("left.0",)
    assert "RuntimeError" in failed.reason


class Net(nn.Module):
    """Subclasses treat the channels of `first` in a way that tracing cannot see; `second` can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 4)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.second(self.middle(self.norm(self.first(x))))).mean((2, 3)))


class FixedView(Net):
    """A fixed number of channels: the cut network does not run, or combines channels of different images."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, 8, 8, 8)


class FixedSplit(Net):
    """A split into parts of fixed sizes."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.split((4, 4), 1)
        return torch.cat((right, left), 1)


class DependsOnCount(Net):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.shape[1]


@pytest.mark.parametrize("kind", [FixedView, FixedSplit, DependsOnCount])
def test_groups_that_tracing_gets_wrong_are_protected(kind: type[Net]) -> None:
    model, images = seeded(kind)
    proven, (failed,), _ = proven_and_failed(model, find_groups(model, images), images)
    assert [(group.name, group.layers) for group in proven] == [("conv_0", ("second",))]
    assert failed.layers == ("first",)


def test_groups_that_can_be_cut_alone_but_not_together() -> None:
    class Exclusive(Net):
        def middle(self, x: torch.Tensor) -> torch.Tensor:
            return x + float(self.first.out_channels < 8 and self.second.out_channels < 6)

    model, images = seeded(Exclusive)
    proven, (failed,), _ = proven_and_failed(model, find_groups(model, images), images)
    assert [group.layers for group in proven] == [("first",)]
    assert failed.layers == ("second",)
    assert NOT_THE_SAME in failed.reason


def seeded(kind: type[nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(), torch.randn(2, 3, 8, 8)


class Faint(Net):
    """`first` has a tiny effect, and its channels are read in reverse order when some are removed."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return 1e-6 * (x if self.first.out_channels == 8 else x.flip(1))


def test_filters_with_a_tiny_effect_are_compared_in_float64() -> None:
    """In float32 the error would be smaller than that of rounding."""
    model, images = seeded(Faint)
    groups = find_groups(model, images)
    differences = prove(model, groups, images)
    assert differences["conv_0"] > 0.01
    assert differences["conv_1"] < 1e-4


def test_outputs_that_are_not_a_number_prove_nothing(make: Any) -> None:
    model, images = make("flatten")
    groups = find_groups(model, images)
    with torch.no_grad():
        model.linear.bias.fill_(float("nan"))
    assert prove(model, groups, images)["conv_0"] == float("inf")


class ZeroBranch(Net):
    """A branch whose weights are zero, which hides that it is cut wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.BatchNorm2d(6)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y = self.last(self.second(y / y.shape[1]))
        return self.head(y.mean((2, 3)))


def test_filters_of_a_zero_branch_are_compared_with_other_weights() -> None:
    model, images = seeded(ZeroBranch)
    differences = prove(model.eval(), find_groups(model, images), images)
    assert differences["conv_0"] > 0.01
    assert differences["conv_1"] < 1e-4


def test_filters_without_any_effect_cannot_be_proven() -> None:
    class Multiplied(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0

    model, images = seeded(Multiplied)
    proven, failed, differences = proven_and_failed(model, find_groups(model, images), images)
    assert not proven
    assert not differences
    assert {entry.reason for entry in failed} == {INVISIBLE}


def test_a_network_that_casts_to_float32_is_proven() -> None:
    class Casts(ZeroBranch):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.last(self.second(self.first(x).float())).mean((2, 3)))

    model, images = seeded(Casts)
    assert max(prove(model.eval(), find_groups(model, images), images).values()) < 1e-4


def test_outputs_of_an_unknown_type_are_refused() -> None:
    @dataclass
    class Output:
        logits: torch.Tensor

    class Wrapped(Net):
        def forward(self, x: torch.Tensor) -> Any:
            return Output(super().forward(x))

    with pytest.raises(PruningError, match="Output"):
        inspect(*seeded(Wrapped))
