"""Cutting filters out equals switching them off, and what does not is caught."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from prune_env.pruning import (
    Member,
    PruningError,
    PruningGroup,
    build_from_indices,
    find_groups,
    prove,
    proven_groups,
    switched_off,
)

NETWORKS = ["small_cnn", "resnet20", "flatten", "concat", "dense", "depthwise", "gated", "reused"]
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("alexnet", "vgg16", "resnet56")]


@pytest.mark.parametrize("name", [*NETWORKS, *LARGE])
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 1000))
def test_cutting_equals_switching_off(make: Any, name: str, seed: int) -> None:
    model, images = make(name)
    groups = find_groups(model, images)
    differences = prove(model, groups, None, images, plans_per_group=1, seed=seed)
    assert list(differences) == [*(group.agent_id for group in groups), "joint"]
    assert max(differences.values()) < 1e-5


def test_by_a_ranking(make: Any) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    ranking = {group.agent_id: torch.arange(group.filters).flip(0) for group in groups}
    assert max(prove(model, groups, ranking, images).values()) < 1e-5


def test_switching_off_is_stronger_than_zero_weights(make: Any) -> None:
    """Case 8: with beta != 0 a filter of zeros is not a missing filter; the proof must not be satisfied by that."""
    model, images = make("small_cnn")
    model.eval()
    (group, *_) = groups = find_groups(model, images)
    keep = {g.agent_id: list(range(g.filters)) for g in groups} | {group.agent_id: list(range(0, group.filters, 2))}
    masked = copy.deepcopy(model)
    with torch.no_grad():
        masked.get_submodule(group.layers[0]).weight[1::2] = 0
        missing = build_from_indices(model, groups, keep)(images)
        with switched_off(model, groups, keep):
            assert torch.allclose(model(images), missing, atol=1e-5)
        assert (masked(images) - missing).abs().max() > 1e-3


def test_switching_off_leaves_no_trace(make: Any) -> None:
    model, images = make("small_cnn")
    model.eval()
    groups = find_groups(model, images)
    before = model(images)
    keep = {group.agent_id: [0] for group in groups}
    with switched_off(model, groups, keep) as off:
        assert off is model
        assert not torch.allclose(model(images), before)
    assert torch.equal(model(images), before)
    with pytest.raises(RuntimeError), switched_off(model, groups, keep):
        model(images[:, :, :1, :1])
    assert torch.equal(model(images), before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_model_is_left_as_it_was(make: Any) -> None:
    model, images = make("resnet20")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    proven_groups(model, find_groups(model, images), images)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())


def with_member(group: PruningGroup, module: str, change: Any) -> PruningGroup:
    return replace(group, members=tuple(change(m) if m.module == module else m for m in group.members))


def rolled(member: Member) -> Member:
    return replace(member, index=member.index.roll(1, 0))


@pytest.mark.parametrize(
    ("name", "agent", "module"),
    [
        ("concat", 0, "mix.0"),
        ("concat", 1, "right.1"),
        ("flatten", 0, "linear"),
        ("depthwise", 1, "depthwise"),
        ("resnet20", 5, "layer2.0.shortcut"),
    ],
)
def test_a_wrong_index_mapping_is_caught(make: Any, name: str, agent: int, module: str) -> None:
    model, images = make(name)
    groups = find_groups(model, images)
    groups[agent] = with_member(groups[agent], module, rolled)
    differences = prove(model, groups, None, images)
    bad = groups[agent]
    assert differences[bad.agent_id] > 1e-4
    assert differences["joint"] > 1e-4
    assert all(value < 1e-4 for key, value in differences.items() if key not in (bad.agent_id, "joint"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            proven = proven_groups(model, groups, images)
        except PruningError:
            proven = []
    assert f"layers {', '.join(bad.layers)} are not pruned" in str(caught[0].message)
    assert "outputs differ by" in str(caught[0].message)
    assert [group.layers for group in proven] == [group.layers for group in groups if group is not bad]
    assert [group.agent_id for group in proven] == [f"conv_{number}" for number in range(len(groups) - 1)]


def test_a_missing_member_is_a_cut_that_does_not_run(make: Any) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    groups[0] = replace(groups[0], members=groups[0].members[:-1])
    assert prove(model, groups, None, images)["conv_0"] == float("inf")
    with pytest.warns(UserWarning, match="layers left.0 are not pruned: .*does not run: RuntimeError"):
        assert [group.layers for group in proven_groups(model, groups, images)] == [("right.0",), ("mix.0",)]


class Net(nn.Module):
    """What torch-pruning cannot see in the graph; only `second` is safe."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 4)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.second(self.middle(self.norm(self.first(x))))).mean((2, 3)))


class Softmax(Net):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x.softmax(1)


class Shuffle(Net):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class FixedView(Net):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, 8, 8, 8)


class Flip(Net):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(1)


class ConstantBuffer(Net):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.arange(8.0)[:, None, None]


@pytest.mark.parametrize("kind", [Softmax, Shuffle, FixedView, Flip, ConstantBuffer])
def test_what_the_graph_does_not_show_is_dropped(kind: type[Net]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, images = kind(), torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups = find_groups(model, images)
        proven = proven_groups(model, groups, images)
    assert [(group.agent_id, group.layers) for group in proven] == [("conv_0", ("second",))]


class Features(Net):
    """Flattened channels last: columns of one filter lie apart."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6 * 64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(F.relu(self.first(x))).permute(0, 2, 3, 1).flatten(1))


def test_a_wrong_flatten_order_is_dropped() -> None:
    model, images = Features(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="layers second are not pruned"):
        assert [group.layers for group in proven_groups(model, find_groups(model, images), images)] == [("first",)]


def test_nothing_is_left() -> None:
    class Alone(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).softmax(1)).mean((2, 3))

    model, images = Alone(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups = find_groups(model, images)
        with pytest.raises(ValueError, match="all fail the proof"):
            proven_groups(model, groups, images)


def test_groups_that_hold_alone_but_not_together() -> None:
    class Jealous(Net):
        def middle(self, x: torch.Tensor) -> torch.Tensor:
            return x + float(self.first.out_channels < 8 and self.second.out_channels < 6)

    model, images = Jealous(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="one at a time but not together"):
        proven_groups(model, find_groups(model, images), images)


def test_not_a_number_is_no_proof(make: Any) -> None:
    model, images = make("flatten")
    groups = find_groups(model, images)
    with torch.no_grad():
        model.linear.bias.fill_(float("nan"))
    assert prove(model, groups, None, images)["conv_0"] == float("inf")
