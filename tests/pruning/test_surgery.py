"""Smaller networks from plans."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structures import hooks
from torch import nn

from prune_env.networks.resnet import ZeroPadShortcut
from prune_env.pruning import Cost, Plan, PruningGroup, build, build_from_indices, find_groups, kept_indices, restrict

NETWORKS = ["small_cnn", "resnet20", "flatten", "concat", "dense", "depthwise", "gated", "reused"]


def shuffled(groups: list[PruningGroup], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.randperm(group.filters, generator=generator) for group in groups}


def halves(groups: list[PruningGroup]) -> Plan:
    return tuple(max(1, group.filters // 2) for group in groups)


def test_a_linear_layer_behind_a_flatten_loses_the_columns_of_the_filters(make: Any) -> None:
    """Without the filters 1 and 5, the linear layer loses the columns 16-31 and 80-95."""
    model, images = make("flatten")
    groups = find_groups(model, images)
    smaller = build_from_indices(model, groups, {"conv_0": [0, 2, 3, 4, 6, 7]})
    columns = [c for c in range(128) if not (16 <= c <= 31 or 80 <= c <= 95)]
    assert torch.equal(smaller.linear.weight, model.linear.weight[:, columns])
    assert torch.equal(smaller.linear.bias, model.linear.bias)
    assert torch.equal(smaller.conv.weight, model.conv.weight[[0, 2, 3, 4, 6, 7]])
    assert torch.equal(smaller.conv.bias, model.conv.bias[[0, 2, 3, 4, 6, 7]])
    assert (smaller.conv.out_channels, smaller.linear.in_features) == (6, 96)


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_networks_are_small(make: Any, name: str) -> None:
    """Parameters, shapes and the file are smaller, nothing is masked, and the network can be run and trained."""
    model, images = make(name)
    groups = find_groups(model, images)
    smaller = build(model, groups, shuffled(groups), halves(groups))
    sizes = []
    for network in (model, smaller):
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
        sizes.append(len(file.getvalue()))
    assert sizes[1] < sizes[0]
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert list(smaller.state_dict()) == list(model.state_dict())
    assert not hooks(smaller)
    for module in smaller.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert len(module.weight) == len(module.running_mean) == module.num_features
    smaller(images).sum().backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())


def test_tied_layers_keep_the_same_filters(make: Any) -> None:
    """The layers of a residual stream are one group."""
    model, images = make("resnet20")
    groups = find_groups(model, images)
    smaller = build(model, groups, shuffled(groups), tuple(9 if len(g.layers) > 1 else 4 for g in groups))
    for group in groups:
        widths = {smaller.get_submodule(layer).out_channels for layer in group.layers}
        assert widths == {9 if len(group.layers) > 1 else 4}
    smaller(images)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_layer_of_a_residual_stream_is_pruned_once(make: Any, reverse: bool) -> None:
    """Removing 30 % of 64 channels leaves 45 in every layer, in any order of the groups."""
    model, images = make("resnet20")
    groups = find_groups(model, images)
    groups = groups[::-1] if reverse else groups
    smaller = build(model, groups, shuffled(groups), tuple(g.filters - int(0.3 * g.filters) for g in groups))
    assert [smaller.layer3[b].conv2.out_channels for b in range(3)] == [45, 45, 45]
    assert [smaller.layer3[b].conv2.in_channels for b in range(3)] == [45, 45, 45]
    assert smaller.linear.in_features == 45


def test_concatenated_branches_lose_their_own_columns(make: Any) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    keep = {"conv_0": [1, 2, 7], "conv_1": [0, 11], "conv_2": list(range(6))}
    smaller = build_from_indices(model, groups, keep)
    assert torch.equal(smaller.mix[0].weight, model.mix[0].weight[:, [1, 2, 7, 8, 19]])


def test_the_sides_of_a_zero_padded_shortcut_are_cut_independently() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
            self.shortcut, self.head = ZeroPadShortcut(4, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head((self.other(x) + self.shortcut(x)).mean((2, 3)))

    model = Net()
    assert model.shortcut.source.tolist() == [-1, -1, 0, 1, 2, 3, -1, -1]
    groups = find_groups(model, torch.zeros(2, 3, 8, 8))
    smaller = build_from_indices(model, groups, {"conv_0": [0, 2, 3], "conv_1": [1, 2, 3, 5, 7]})
    assert smaller.shortcut.source.tolist() == [-1, 0, -1, 2, -1]
    assert (smaller.shortcut.in_channels, smaller.shortcut.out_channels) == (3, 5)


@pytest.mark.parametrize("name", ["resnet20", "concat"])
def test_the_model_does_not_change(make: Any, name: str) -> None:
    """Tensors, modes, hooks and requires_grad stay the same; the smaller network shares no memory with it."""
    model, images = make(name)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.weight.requires_grad_(False)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    calls = []
    norm.register_forward_hook(lambda *_: calls.append(1))
    attributes = {path: repr(module) for path, module in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]

    groups = find_groups(model, images)
    calls.clear()  # hooks run once, in the check that they change nothing
    for plan in (halves(groups), tuple(group.filters for group in groups)):
        smaller = build(model, groups, shuffled(groups), plan)
        assert [module.training for module in smaller.modules()] == modes
        assert [p.requires_grad for p in smaller.parameters()] == [p.requires_grad for p in model.parameters()]
        assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in smaller.parameters())
        smaller(images)
        with torch.no_grad():
            for tensor in (*smaller.parameters(), *smaller.buffers()):
                tensor.fill_(7)
        assert not calls, "hooks are not carried over"

    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert {path: repr(module) for path, module in model.named_modules()} == attributes
    assert [module.training for module in model.modules()] == modes
    assert hooks(model) == hooks(norm) == 1


def test_networks_and_groups_can_be_pickled(make: Any) -> None:
    """Pruning leaves no new keys or attributes in the model and the pruned network."""
    model, images = make("resnet20")
    keys, attributes = list(model.state_dict()), [set(vars(module)) for module in model.modules()]
    groups = find_groups(model, images)
    Cost(model, groups, images)
    smaller = build(model, groups, shuffled(groups), halves(groups))
    for network in (model, smaller):
        assert list(network.state_dict()) == keys
        assert [set(vars(module)) for module in network.modules()] == attributes
        assert "forward" not in vars(network)
        pickle.loads(pickle.dumps(network))
    pickle.loads(pickle.dumps(groups))


def test_a_network_that_is_built_in_inference_mode_can_be_trained(make: Any) -> None:
    model, images = make("small_cnn")
    groups = find_groups(model, images)
    with torch.inference_mode():
        smaller = build(model, groups, shuffled(groups), halves(groups))
    smaller(images).sum().backward()
    assert not any(p.is_inference() for p in smaller.parameters())


def test_the_first_filters_of_the_ranking_are_kept(make: Any) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    ranking = shuffled(groups)
    kept = kept_indices(groups, ranking, (3, 12, 1))
    assert kept["conv_0"].tolist() == sorted(ranking["conv_0"][:3].tolist())
    assert kept["conv_1"].tolist() == list(range(12))
    rebuilt = build_from_indices(model, groups, {name: indices.tolist() for name, indices in kept.items()})
    expected = build(model, groups, ranking, (3, 12, 1)).state_dict()
    assert all(torch.equal(expected[key], value) for key, value in rebuilt.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000))
def test_pruning_in_two_steps_equals_pruning_at_once(make: Any, name: str, seed: int) -> None:
    model, images = make(name)
    groups = find_groups(model, images)
    ranking = shuffled(groups, seed)
    generator = torch.Generator().manual_seed(seed)
    first = tuple(int(torch.randint(1, g.filters + 1, (), generator=generator)) for g in groups)
    second = tuple(int(torch.randint(1, kept + 1, (), generator=generator)) for kept in first)
    at_once = build(model, groups, ranking, second).state_dict()
    middle = build(model, groups, ranking, first)
    between, order = restrict(groups, ranking, first)
    assert tuple(group.filters for group in between) == first
    in_two = build(middle, between, order, second).state_dict()
    assert all(torch.equal(at_once[key], in_two[key]) for key in at_once)


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        ([], r"\[\]"),
        ([2, 1], r"\[2, 1\]"),
        ([1, 1], r"\[1, 1\]"),
        ([0, 8], r"7.*\[0, 8\]"),
        ([-1, 3], r"\[-1, 3\]"),
        (None, "left.0"),
    ],
)
def test_wrong_indices_are_refused(make: Any, kept: Any, named: str) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    keep = {"conv_0": kept, "conv_1": [0], "conv_2": [0]}
    if kept is None:
        del keep["conv_0"]
    with pytest.raises(ValueError, match=f"conv_0.*{named}"):
        build_from_indices(model, groups, keep)
    with pytest.raises(ValueError, match="conv_9"):
        build_from_indices(model, groups, {"conv_9": [0]})


def test_groups_of_another_network_are_refused(make: Any) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    smaller = build(model, groups, shuffled(groups), (2, 3, 4))
    with pytest.raises(ValueError, match=r"left\.0.* 2 "):
        build_from_indices(smaller, groups, {"conv_0": [0], "conv_1": [0], "conv_2": [0]})
    with pytest.raises(ValueError, match=r"'left\.0'"):
        build(make("flatten")[0], groups, shuffled(groups), (2, 3, 4))


def test_plans_that_do_not_fit_are_refused(make: Any) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    with pytest.raises(ValueError, match=r"conv_0.* 0$"):
        build(model, groups, shuffled(groups), (0, 12, 6))
    with pytest.raises(ValueError, match=r"conv_0.* 0$"):
        restrict(groups, shuffled(groups), (0, 12, 6))
