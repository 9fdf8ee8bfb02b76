"""From a plan to a smaller network."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prune_env.networks import create
from prune_env.networks.resnet import ZeroPadShortcut
from prune_env.pruning import Cost, Plan, PruningGroup, build, build_from_indices, find_groups, kept_indices, restrict

NETWORKS = ["small_cnn", "resnet20", "flatten", "concat", "dense", "depthwise", "gated", "reused"]


def shuffled(groups: list[PruningGroup], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.randperm(group.filters, generator=generator) for group in groups}


def halves(groups: list[PruningGroup]) -> Plan:
    return tuple(max(1, group.filters // 2) for group in groups)


def test_flatten_loses_the_filters_columns_and_nothing_else(make: Any) -> None:
    """Case 1: filters 1 and 5 go, the Linear loses columns 16-31 and 80-95."""
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
def test_small_models_are_small(make: Any, name: str) -> None:
    """Case 3: parameters, MACs, shapes and the file shrink, nothing masks, and the smaller network runs and learns."""
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
    for module in smaller.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert len(module.weight) == len(module.running_mean) == module.num_features
    smaller(images).sum().backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())


def test_tied_layers_cannot_disagree(make: Any) -> None:
    """Case 6: one agent for each residual stream, so that all its layers keep the same filters."""
    model, images = make("resnet20")
    groups = find_groups(model, images)
    smaller = build(model, groups, shuffled(groups), tuple(9 if len(g.layers) > 1 else 4 for g in groups))
    for group in groups:
        widths = {smaller.get_submodule(layer).out_channels for layer in group.layers}
        assert widths == {9 if len(group.layers) > 1 else 4}
    smaller(images)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_coupled_layer_is_pruned_once(make: Any, reverse: bool) -> None:
    """Case 7: 64 channels at 0.3 leave 45, whatever the order of the groups."""
    model, images = make("resnet20")
    groups = find_groups(model, images)
    groups = groups[::-1] if reverse else groups
    smaller = build(model, groups, shuffled(groups), tuple(g.filters - int(0.3 * g.filters) for g in groups))
    assert [smaller.layer3[b].conv2.out_channels for b in range(3)] == [45, 45, 45]
    assert [smaller.layer3[b].conv2.in_channels for b in range(3)] == [45, 45, 45]
    assert smaller.linear.in_features == 45


def test_concatenated_branches_lose_their_own_columns(make: Any) -> None:
    """Case 9."""
    model, images = make("concat")
    groups = find_groups(model, images)
    keep = {"conv_0": [1, 2, 7], "conv_1": [0, 11], "conv_2": list(range(6))}
    smaller = build_from_indices(model, groups, keep)
    assert torch.equal(smaller.mix[0].weight, model.mix[0].weight[:, [1, 2, 7, 8, 19]])


def test_zero_padded_shortcuts_lose_both_sides_independently() -> None:
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
def test_the_model_is_untouched(make: Any, name: str) -> None:
    """Case 11: tensors, mode, hooks and requires_grad stay; the smaller network shares nothing."""
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
    assert len(norm._forward_hooks) == 1


def test_traces_are_not_left(make: Any) -> None:
    """Case 12: no new state dict keys, nothing that breaks pickling, in the model and in what is built of it."""
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


def test_under_inference_mode_the_network_can_still_be_trained(make: Any) -> None:
    model, images = make("small_cnn")
    groups = find_groups(model, images)
    with torch.inference_mode():
        smaller = build(model, groups, shuffled(groups), halves(groups))
    smaller(images).sum().backward()
    assert not any(p.is_inference() for p in smaller.parameters())


def test_the_first_ranked_filters_stay(make: Any) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    ranking = shuffled(groups)
    kept = kept_indices(groups, ranking, (3, 12, 1))
    assert kept["conv_0"].tolist() == sorted(ranking["conv_0"][:3].tolist())
    assert kept["conv_1"].tolist() == list(range(12))
    rebuilt = build_from_indices(model, groups, {agent: indices.tolist() for agent, indices in kept.items()})
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
    ("plan", "message"),
    [
        ((4, 12), "one filter count for each of the 3 groups, got 2"),
        ((0, 12, 6), r"conv_0 .left.0. can keep 1 to 8 filters, the plan says 0"),
        ((8, 13, 6), r"conv_1 .right.0. can keep 1 to 12 filters, the plan says 13"),
        ((8, 2.5, 6), r"conv_1 .right.0. can keep 1 to 12 filters, the plan says 2.5"),
    ],
)
def test_bad_plans(make: Any, plan: Any, message: str) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    with pytest.raises(ValueError, match=message):
        build(model, groups, shuffled(groups), plan)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([], "conv_0 must be ascending indices from 0 to 7, at least one"),
        ([2, 1], "ascending"),
        ([1, 1], "ascending"),
        ([0, 8], "from 0 to 7"),
        ([-1, 3], "from 0 to 7"),
        (None, "conv_0 .left.0. are missing"),
    ],
)
def test_bad_indices(make: Any, kept: Any, message: str) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    keep = {"conv_0": kept, "conv_1": [0], "conv_2": [0]}
    if kept is None:
        del keep["conv_0"]
    with pytest.raises(ValueError, match=message):
        build_from_indices(model, groups, keep)
    with pytest.raises(ValueError, match="conv_9"):
        build_from_indices(model, groups, {"conv_9": [0]})


def test_groups_of_another_network(make: Any) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    smaller = build(model, groups, shuffled(groups), (2, 3, 4))
    with pytest.raises(ValueError, match=r"groups do not fit the network: left\.0 has 2 channels"):
        build_from_indices(smaller, groups, {"conv_0": [0], "conv_1": [0], "conv_2": [0]})
    with pytest.raises(ValueError, match="groups do not fit the network: it has no module"):
        build(make("flatten")[0], groups, shuffled(groups), (2, 3, 4))


def test_a_copy_is_what_deepcopy_would_have_made():
    class Odd(nn.Module):  # attributes of many kinds, and one that names a module a second time
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.empty = nn.Conv2d(3, 8, 3), nn.Sequential()
            self.settings, self.sizes = {"deep": [1, {"er": (2, 3)}]}, [4, 5]
            self.listed = [self.conv, torch.ones(2)]
            self.register_parameter("nothing", None)
            self.register_buffer("passing", torch.arange(3.0), persistent=False)

        def __len__(self) -> int:  # false in a condition
            return 0

    model = nn.Sequential(Odd(), nn.BatchNorm2d(8), nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 1)))
    model[0].conv.compile()
    ours, theirs = build(model, (), {}, ()), copy.deepcopy(model)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for mine, other, original in zip(ours.modules(), theirs.modules(), model.modules(), strict=True):
        assert type(mine) is type(other)
        assert vars(mine).keys() == vars(other).keys()
        assert mine is not original
        for name, value in vars(original).items():
            if isinstance(value, (dict, list, set)):
                assert vars(mine)[name] is not value, name
    assert ours[0].listed[0] is ours[0].conv
    assert ours[0].listed[1] is not model[0].listed[1]
    assert ours[0].settings == model[0].settings
    assert ours[0].settings["deep"] is not model[0].settings["deep"]
    assert "passing" in ours[0]._non_persistent_buffers_set
    assert ours[0].conv._compiled_call_impl is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
        assert ours.state_dict()[name].data_ptr() != tensor.data_ptr()


def test_parents_that_look_into_their_children_are_copied():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.flat = [self.conv.weight]

        def __setstate__(self, state: dict) -> None:
            super().__setstate__(state)
            self.flat = [self.conv.weight]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    for model in (torch.fx.symbolic_trace(create("resnet20").eval()), nn.Sequential(Flat(), nn.Sequential(nn.ReLU()))):
        copied = build(model, (), {}, ())
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(copied(images), model(images))
    assert copied[0].flat[0] is copied[0].conv.weight
    assert copied[0].conv.weight is not model[0].conv.weight
