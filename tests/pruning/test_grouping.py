"""Which filters can only be removed together, and which cannot be removed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from structures import hooks
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from prune_env.networks import create
from prune_env.pruning import Protected, PruningError, PruningGroup, find_groups, inspect
from prune_env.pruning.grouping import groups_and_protected

IMAGES = torch.zeros(2, 3, 8, 8)


def index(group: PruningGroup, module: str, side: str) -> torch.Tensor:
    (member,) = [m for m in group.members if (m.module, m.side) == (module, side)]
    return member.index


def protected_layers(entries: Sequence[Protected]) -> set[str]:
    return {layer for entry in entries for layer in entry.layers}


def names(groups: list[PruningGroup]) -> list[tuple[str, ...]]:
    return [group.layers for group in groups]


@pytest.mark.parametrize(
    ("name", "count"), [("small_cnn", 5), ("alexnet", 7), ("vgg16", 13), ("resnet20", 12), ("resnet56", 30)]
)
def test_registered_networks(make: Any, name: str, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups = find_groups(*make(name))
    assert [group.name for group in groups] == [f"conv_{number}" for number in range(count)]


def test_resnet20_has_nine_inner_groups_and_three_streams(make: Any) -> None:
    groups = find_groups(*make("resnet20"))
    inner = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]
    assert [group.layers[0] for group in groups if len(group.layers) == 1] == inner
    streams = {group.filters: group for group in groups if len(group.layers) > 1}
    assert streams[16].layers == ("conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2")
    assert streams[32].layers == ("layer2.0.conv2", "layer2.1.conv2", "layer2.2.conv2")
    assert streams[64].layers == ("layer3.0.conv2", "layer3.1.conv2", "layer3.2.conv2")
    assert ("layer2.0.shortcut", "in") in [(m.module, m.side) for m in streams[16].members]
    assert ("layer2.0.shortcut", "out") in [(m.module, m.side) for m in streams[32].members]
    assert groups[0] is streams[16], "groups are in forward order of their first convolution"


def test_each_filter_owns_a_block_of_columns_behind_a_flatten(make: Any) -> None:
    (group,) = find_groups(*make("flatten"))
    assert index(group, "linear", "in").tolist() == [list(range(16 * c, 16 * c + 16)) for c in range(8)]


def test_concatenated_branches_have_their_own_groups_and_offsets(make: Any) -> None:
    left, right, mix = find_groups(*make("concat"))
    assert index(left, "mix.0", "in").flatten().tolist() == list(range(8))
    assert index(right, "mix.0", "in").flatten().tolist() == list(range(8, 20))
    assert mix.layers == ("mix.0",)


def test_concatenation_with_the_networks_input(make: Any) -> None:
    one, two, _ = find_groups(*make("dense"))
    assert index(one, "two.0", "in").flatten().tolist() == list(range(3, 9))
    assert index(one, "norm", "out").flatten().tolist() == list(range(8, 14))
    assert index(two, "last.0", "in").flatten().tolist() == list(range(5))


def test_a_depthwise_convolution_is_in_the_group_of_its_input(make: Any) -> None:
    groups = find_groups(*make("depthwise"))
    assert names(groups) == [("stem.0", "project"), ("expand.0", "depthwise")]
    assert [(m.module, m.side) for m in groups[1].members if m.module == "depthwise"] == [("depthwise", "out")]


def test_a_gate_is_in_the_group_of_the_channels_that_it_gates(make: Any) -> None:
    stem, _ = find_groups(*make("gated"))
    sides = {(m.module, m.side) for m in stem.members}
    assert {("squeeze", "in"), ("excite", "out"), ("activation", "out"), ("last.0", "in")} <= sides


def test_frozen_networks_and_inference_mode(make: Any) -> None:
    model, images = make("resnet20")
    model.requires_grad_(False)
    with torch.inference_mode():
        assert len(find_groups(model, images)) == 12
    assert len(find_groups(model.eval(), images)) == 12


def test_the_model_does_not_change(make: Any) -> None:
    model, images = make("resnet20")
    calls = []
    model.layer1.register_forward_hook(lambda *_: calls.append(1))
    model.layer2.eval()
    model.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    random = torch.random.get_rng_state()
    seen = {name: set(vars(module)) for name, module in model.named_modules()}
    find_groups(model, images)
    assert calls == [1], "hooks run once, on a copy, to see whether they change something"
    assert hooks(model) == hooks(model.layer1) == 1
    assert not model.layer2.training
    assert model.layer1.training
    assert not model.conv1.weight.requires_grad
    assert model.linear.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert seen == {name: set(vars(module)) for name, module in model.named_modules()}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert list(before) == list(model.state_dict())
    assert torch.equal(random, torch.random.get_rng_state())


class Net(nn.Module):
    """first -> something that cannot be cut -> second -> head; only `first` is affected."""

    def __init__(self, between: nn.Module | None = None, width: int = 8) -> None:
        super().__init__()
        self.first, self.between = nn.Conv2d(3, 8, 3, padding=1), between or nn.Identity()
        self.second, self.head = nn.Conv2d(width, 6, 3, padding=1), nn.Linear(6, 4)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.between(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.second(self.middle(self.first(x)))).mean((2, 3)))


class RawParameter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1), requires_grad=False)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class UnevenSplit(Net):
    def __init__(self) -> None:
        super().__init__(width=6)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.split((6, 2), 1)
        return left * right.mean()


class Roll(Net):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x.roll(1, 1)


class ChannelMean(Net):
    """Spatial attention, in which the mean depends on every channel."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.mean(1, keepdim=True).sigmoid()


class OneGate(Net):
    """The one channel of `first` gates all channels of another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.other(x) * self.first(x).sigmoid()).mean((2, 3)))


class Slice(Net):
    def __init__(self) -> None:
        super().__init__(width=5)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 3:]


class InputAdded(Net):
    def __init__(self) -> None:
        super().__init__(width=3)
        self.first = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(x + self.first(x)).mean((2, 3)))


class TiedWeights(Net):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(8, 8, 3, padding=1))
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.again.weight = self.between.weight

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.again(F.relu(self.between(x))))


@pytest.mark.parametrize(
    ("model", "names_in_reason"),
    [
        (Net(nn.GroupNorm(1, 8)), ["group_norm", "between"]),
        (Net(nn.LayerNorm((8, 8, 8))), ["layer_norm", "between"]),
        (Net(nn.Softmax(1)), ["softmax", "between"]),
        (Net(nn.LocalResponseNorm(3)), ["aten.avg_pool3d"]),
        (Net(nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2)), ["between", "ConvTranspose2d"]),
        (Net(parametrizations.weight_norm(nn.Conv2d(8, 8, 1))), ["between", "weight"]),
        (RawParameter(), ["scale"]),
        (Slice(), []),
        (Roll(), ["aten.roll"]),
        (ChannelMean(), ["aten.mean"]),
        (OneGate(), []),
        (InputAdded(), []),
        (TiedWeights(), ["between", "again"]),
        (UnevenSplit(), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_that_cannot_be_cut_are_protected_with_a_warning(model: nn.Module, names_in_reason: list[str]) -> None:
    with pytest.warns(UserWarning, match="first") as caught:
        groups = find_groups(model, IMAGES)
    assert {warning.filename for warning in caught} == {__file__}
    _, protected = groups_and_protected(model, IMAGES)
    (entry,) = [entry for entry in protected if "first" in entry.layers]
    assert all(name in entry.reason for name in names_in_reason)
    assert {str(warning.message) for warning in caught} == {str(entry) for entry in protected}
    assert all(layer in str(entry) for layer in entry.layers)
    assert ("second",) in names(groups)
    assert not any("first" in group.layers for group in groups)
    assert groups[0].name == "conv_0"


class Attention(Net):
    """torch's attention uses the parameters of its output layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


@pytest.mark.parametrize("train", [False, True])
def test_layers_whose_parameters_are_used_without_calling_them(train: bool) -> None:
    inspection = inspect(Attention().train(train), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert ("second",) in names(list(inspection.groups))
    assert {"first", "attention.out_proj"} <= protected_layers(inspection.protected)


def test_a_convolutional_head_is_protected() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    groups, protected = groups_and_protected(model, IMAGES)
    assert names(groups) == [("0",)]
    assert protected_layers(protected) == {"2"}


def test_a_returned_feature_map_is_protected() -> None:
    class Features(Net):
        def forward(self, x: torch.Tensor) -> Any:
            x = self.first(x)
            return self.head(self.second(x).mean((2, 3))), x

    groups, protected = groups_and_protected(Features(), IMAGES)
    assert names(groups) == [("second",)]
    assert protected_layers(protected) == {"first"}


@pytest.mark.filterwarnings("ignore:layers")
def test_a_network_without_groups() -> None:
    with pytest.raises(PruningError):
        find_groups(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), IMAGES)
    with pytest.raises(PruningError, match="layers 0 "):
        find_groups(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), IMAGES)


def test_a_network_that_does_not_run_on_the_example() -> None:
    with pytest.raises(PruningError, match=r"RuntimeError.*\(2, 5, 32, 32\)"):
        find_groups(create("vgg16"), torch.zeros(2, 5, 32, 32))


def test_masks_must_be_made_permanent_first() -> None:
    model = Net()
    prune.l1_unstructured(model.first, "weight", 0.5)
    model(IMAGES)
    with pytest.raises(PruningError, match=r"prune\.remove"):
        find_groups(model, IMAGES)


def test_a_training_branch_that_does_not_run_is_named_in_a_warning() -> None:
    class Auxiliary(Net):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
            if self.training:
                assert targets is not None, "targets are missing"
                self.extra(self.first(x).mean((2, 3)))
            return super().forward(x)

    with pytest.warns(UserWarning, match="extra.*targets are missing"):
        find_groups(Auxiliary(), IMAGES)


def test_hooks_that_compute_weights_must_be_made_permanent() -> None:
    model = Net()
    torch.nn.utils.spectral_norm(model.first)
    with torch.no_grad():
        model(IMAGES)
    with pytest.raises(PruningError, match="first"):
        find_groups(model, IMAGES)


def test_a_compiled_network_has_the_groups_of_the_original() -> None:
    compiled: Any = torch.compile(Net(), backend="eager")
    assert names(find_groups(compiled, IMAGES)) == [("first",), ("second",)]


def test_an_operation_called_in_an_unknown_form_only_protects_its_operands() -> None:
    class Where(Net):
        def middle(self, x: torch.Tensor) -> torch.Tensor:
            return x + len(torch.where(x > 0)[0])

    groups, protected = groups_and_protected(Where(), IMAGES)
    assert names(groups) == [("second",)]
    assert protected_layers(protected) == {"first"}


def test_several_inputs() -> None:
    class Two(Net):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return super().forward(x * scale)

    inspection = inspect(Two(), (torch.randn(2, 3, 8, 8), torch.rand(2, 1, 1, 1)))
    assert names(list(inspection.groups)) == [("first",), ("second",)]
    assert max((inspection.differences or {}).values()) < 1e-4


@pytest.mark.parametrize(
    "convolution", [nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 1, groups=4)]
)
def test_grouped_layers_are_inspected(convolution: nn.Module) -> None:
    inspection = inspect(Net(convolution), torch.randn(2, 3, 8, 8))
    assert ("second",) in names(list(inspection.groups))


def test_a_network_that_calls_no_layer() -> None:
    class Idle(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    with pytest.raises(PruningError):
        inspect(Idle(), IMAGES)
