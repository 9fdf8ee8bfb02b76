"""Layers of users: registered once, they are traced, proven, cut, counted and masked like torch's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from structures import random_network
from torch import nn
from torch.nn import functional as F

from prune_env import load_pruned, save_pruned
from prune_env.data import DataSplits
from prune_env.evaluation.engine.cuda_recording import masking_fault
from prune_env.evaluation.engine.masked import MaskedNetwork
from prune_env.evaluation.engine.program import Program
from prune_env.networks.resnet import ZeroPadShortcut
from prune_env.pruning import (
    Cost,
    ModuleSpec,
    Plan,
    PruningError,
    PruningGroup,
    build,
    channels,
    find_groups,
    inspect,
    register_module,
)
from prune_env.pruning.grouping import groups_and_protected
from prune_env.pruning.modules import refusal, spec_of
from prune_env.pruning.problem import ProblemConfig, PruningProblem
from prune_env.pruning.proof import NOT_THE_SAME
from prune_env.scoring.batchnorm import recalibrate


@register_module(
    ModuleSpec(
        sizes={"in_channels": "in", "out_channels": "out"},
        tensors={"source": ("out",), "gain": ("out",)},
        indices={"source": "in"},
    )
)
class ChannelMap(nn.Module):
    """Output channel o is input channel source[o] times gain[o], or zero where source[o] is -1."""

    source: torch.Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, out_channels))
        self.register_buffer("source", torch.arange(out_channels).flip(0) % (in_channels + 1) - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, 0, 0, 0, 1, 0))
        return x[:, self.source + 1] * self.gain[:, None, None]


@register_module(
    ModuleSpec({"inputs": "in", "outputs": "out"}, {"matrix": ("out", "in"), "offset": ("out",), "table": ("in", None)})
)
class Mixer(nn.Module):
    """A matrix and a table that combine channels at every position."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.matrix, self.offset = nn.Parameter(torch.randn(outputs, inputs) / 4), nn.Parameter(torch.randn(outputs))
        self.table = nn.Parameter(torch.randn(inputs, 2))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        common = torch.einsum("bihw,ij->bhw", x, self.table) / 8
        return torch.einsum("oi,bihw->bohw", self.matrix, x) + self.offset[:, None, None] + common[:, None]


@register_module(ModuleSpec(sizes={"channels": "out"}, tensors={"scale": ("out",)}))
class LayerScale(nn.Module):
    """Multiplies every channel by a parameter."""

    def __init__(self, channels: int, outputs: int | None = None) -> None:
        super().__init__()
        self.channels, self.scale = channels, nn.Parameter(torch.linspace(-1, 1.5, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale[:, None, None]


class Net(nn.Module):
    """first -> layer, added to other -> last -> head."""

    def __init__(self, layer: nn.Module, inputs: int = 8, outputs: int = 12) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, inputs, 3, padding=1), nn.BatchNorm2d(inputs)
        self.layer, self.other = layer, nn.Conv2d(inputs, outputs, 3, padding=1)
        self.last, self.head = nn.Conv2d(outputs, 6, 3, padding=1), nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.head(F.relu(self.last(F.relu(self.layer(x) + self.other(x)))).mean((2, 3)))


def network(kind: str) -> tuple[nn.Module, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = {"map": lambda: ChannelMap(8, 12), "mixer": lambda: Mixer(8, 12), "scale": lambda: LayerScale(8)}
        return Net(layers[kind](), outputs=8 if kind == "scale" else 12).eval(), torch.randn(4, 1, 8, 8)


KINDS = ["map", "mixer", "scale"]
LAYERS = {
    "map": {("first",), ("other",), ("last",)},
    "mixer": {("first",), ("other",), ("last",)},
    "scale": {("first", "other"), ("last",)},
}


def plans(groups: Any) -> list[Plan]:
    generator = torch.Generator().manual_seed(0)
    draws = [tuple(int(torch.randint(1, g.filters + 1, (), generator=generator)) for g in groups) for _ in range(4)]
    return [*draws, tuple(group.filters for group in groups), (1,) * len(groups)]


def random_ranking(groups: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {group.name: torch.randperm(group.filters, generator=generator) for group in groups}


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_found_and_proven(kind: str) -> None:
    model, images = network(kind)
    inspection = inspect(model, images)
    assert {group.layers for group in inspection.groups} == LAYERS[kind]
    assert not inspection.protected
    assert inspection.differences is not None
    assert max(inspection.differences.values()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_cut_networks_are_small_and_counted_exactly(kind: str) -> None:
    model, images = network(kind)
    groups = find_groups(model, images)
    cost = Cost(model, groups, images)
    for plan in plans(groups):
        small = build(model, groups, random_ranking(groups), plan)
        assert cost.params(plan) == sum(parameter.numel() for parameter in small.parameters())
        for layer in (small.layer, copy.deepcopy(small).layer):
            assert (channels(layer, "in") or channels(layer, "out")) == small.first.out_channels
            assert channels(layer, "out") == small.other.out_channels
        small(images).sum().backward()


def test_indices_are_renumbered() -> None:
    model, images = network("map")
    groups = find_groups(model, images)
    assert model.layer.source.tolist() == [1, 0, -1, 7, 6, 5, 4, 3, 2, 1, 0, -1]
    ranking = {group.name: torch.arange(group.filters) for group in groups}
    first, other, _ = (group.layers for group in groups)
    assert (first, other) == (("first",), ("other",))
    small = build(model, groups, ranking, (7, 8, 6))  # without input channel 7 and the last four output channels
    assert small.layer.source.tolist() == [1, 0, -1, -1, 6, 5, 4, 3]
    assert torch.equal(small.layer.gain, model.layer.gain[:8])


@pytest.mark.parametrize("kind", KINDS)
def test_the_engines_compute_what_cut_networks_compute(kind: str) -> None:
    model, images = network(kind)
    groups = find_groups(model, images)
    ranking = random_ranking(groups)
    program = Program(model, groups, images, dtype=torch.float32)
    assert not program.refused
    masked = MaskedNetwork(model, groups, ranking, dtype=torch.float32)
    assert masking_fault(model, groups, images) is None
    for plan in plans(groups):
        small = build(model, groups, ranking, plan)
        program.load(ranking, plan)
        with torch.inference_mode():
            assert torch.allclose(program.network(images), small(images), atol=1e-4)
        recalibrate(small, (images,))
        masked.load(plan)
        masked.apply()
        recalibrate(masked.network, (images,))
        program.load_network(small)
        with torch.inference_mode():
            assert torch.allclose(masked.network(images), small(images), atol=1e-4)
            assert torch.allclose(program.network(images), small(images), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_problem_with_such_a_layer_can_be_saved_and_loaded(kind: str, digits: DataSplits, tmp_path: Any) -> None:
    model, _ = network(kind)
    problem = PruningProblem.create(model, digits, ProblemConfig())
    plan = tuple(-(-filters // 2) for filters in problem.full_plan)
    small = pickle.loads(pickle.dumps(problem)).build(plan)
    save_pruned(tmp_path, small, plan, problem, base=model)
    loaded = load_pruned(tmp_path, base_model=network(kind)[0])
    with torch.inference_mode():
        assert torch.equal(loaded(digits.example_input), small(digits.example_input))


def test_subclasses_inherit_the_spec() -> None:
    class Named(LayerScale):
        pass

    model = Net(Named(8), outputs=8).eval()
    assert {group.layers for group in find_groups(model, torch.randn(2, 1, 8, 8))} == LAYERS["scale"]


def test_a_spec_may_depend_on_the_module() -> None:
    class Either(LayerScale):
        """Scales every channel, or all channels alike."""

        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.length = channels

    def either(module: Either) -> ModuleSpec:
        return ModuleSpec({"length": "out"}, {"scale": ("out",)} if module.length > 1 else {})

    assert register_module(either)(Either) is Either
    spec = spec_of(Either(8))
    assert spec is not None
    assert list(spec.tensors) == ["scale"]
    spec = spec_of(Either(1))
    assert spec is not None
    assert not spec.tensors


class Unregistered(LayerScale):
    """A layer that tracing follows, so that its parameter protects the channels."""


register_module(ModuleSpec({"channels": "out"}, {"scale": ("out",)}, traced_as_whole=False))(Unregistered)


class Pair(LayerScale):
    """Returns two tensors."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


class TwoInputs(LayerScale):
    """Reads channels from a second input, too."""

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x) + (0 if other is None else other)


class Inner(LayerScale):
    """Contains a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Conv2d(1, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.conv(x[:, :1]).mean()


@register_module(ModuleSpec(refusal="is too delicate"))
class Refused(LayerScale):
    """Cannot be cut."""


@register_module(ModuleSpec())
class Unknown(LayerScale):
    """Has a spec without sides."""


@pytest.mark.parametrize(
    ("layer", "protected", "name"),
    [
        (Unregistered(8), {"first", "other"}, ""),
        (Refused(8), {"first", "other"}, "layer is too delicate"),
        (Unknown(8), {"first", "other"}, "Unknown"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_channels_are_protected_where_a_layer_cannot_be_cut(layer: nn.Module, protected: set[str], name: str) -> None:
    groups, entries = groups_and_protected(Net(layer, outputs=8), torch.randn(2, 1, 8, 8))
    assert [group.layers for group in groups] == [("last",)]
    assert {layer for entry in entries for layer in entry.layers} == protected
    assert any(name in entry.reason for entry in entries)


def test_a_layer_that_returns_several_tensors_protects_its_input() -> None:
    class Several(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            one, two = self.layer(self.first(x))
            return self.head(self.last(self.other(one + two)).mean((2, 3)))

    groups, (entry,) = groups_and_protected(Several(Pair(8)), torch.randn(2, 1, 8, 8))
    assert [group.layers for group in groups] == [("other",), ("last",)]
    assert entry.layers == ("first",)
    assert "layer" in entry.reason


def test_further_inputs_of_a_layer_are_protected() -> None:
    class Several(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.head(self.last(self.layer(x, other=self.other(x))).mean((2, 3)))

    groups, (entry,) = groups_and_protected(Several(TwoInputs(8), outputs=8), torch.randn(2, 1, 8, 8))
    assert [group.layers for group in groups] == [("first",), ("last",)]
    assert entry.layers == ("other",)


def test_convolutions_inside_a_layer_are_protected() -> None:
    model = Net(Inner(8), outputs=8).eval()
    groups, (entry,) = groups_and_protected(model, torch.randn(2, 1, 8, 8))
    assert {group.layers for group in groups} == LAYERS["scale"]
    assert entry.layers == ("layer.conv",)


def test_a_shared_parameter_protects_the_channels() -> None:
    model = Net(nn.Sequential(LayerScale(8), LayerScale(8)), outputs=8).eval()
    model.layer[1].scale = model.layer[0].scale
    groups, entries = groups_and_protected(model, torch.randn(2, 1, 8, 8))
    assert [group.layers for group in groups] == [("last",)]
    assert {layer for entry in entries for layer in entry.layers} == {"first", "other"}


@register_module(ModuleSpec(sizes={"half": "out"}, traced_as_whole=False))
class Halves(nn.Module):
    """Splits by a number that it stores."""

    def __init__(self, half: int) -> None:
        super().__init__()
        self.half = half

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.split(self.half, 1)
        return torch.cat((left * right, right), 1)


class C2f(nn.Module):
    """Has the name and the attribute of a known class, and means something else."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.c = c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, 1)
        return torch.cat((left * right, right), 1) * self.c


def test_a_stored_number_follows_the_parts_of_a_split() -> None:
    model, images = Net(Halves(4), outputs=8).eval(), torch.randn(2, 1, 8, 8)
    inspection = inspect(model, images)
    assert [group.filters for group in inspection.groups] == [4, 6]
    assert max((inspection.differences or {}).values()) < 1e-4
    smaller: Any = build(model, inspection.groups, random_ranking(inspection.groups), (3, 6))
    assert (model.layer.half, smaller.layer.half) == (4, 3)


def test_a_class_that_only_has_the_name_of_a_known_one_stays_whole() -> None:
    inspection = inspect(Net(C2f(4), outputs=8).eval(), torch.randn(2, 1, 8, 8))
    assert [group.layers for group in inspection.groups] == [("last",)]
    assert any(NOT_THE_SAME in entry.reason for entry in inspection.protected)


def test_a_known_name_without_the_known_attributes_means_nothing() -> None:
    layer = C2f(4)
    del layer.c
    assert spec_of(layer) is None


def test_sizes_that_do_not_fit_the_tensors_are_an_error() -> None:
    layer = LayerScale(8)
    layer.channels = 7
    with pytest.raises(PruningError, match=r"layer has 7 .*\(2, 8, 8, 8\)"):
        find_groups(Net(layer, outputs=8), torch.randn(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sizes": {"channels": "left"}}, "left"),
        ({"sizes": {"channels": "out"}, "tensors": {"scale": ("in",)}}, "scale.*in"),
        ({"sizes": {"channels": "out"}, "indices": {"source": "in"}}, "source.*in"),
        ({"sizes": {"inputs": "in", "outputs": "out"}, "tensors": {"scale": ("out",)}}, "in"),
        ({"sizes": {"channels": "out"}, "tensors": {"scale": ("out",) * 3}}, "scale"),
    ],
)
def test_specs_that_contradict_themselves_are_refused(fields: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModuleSpec(**fields)


def test_only_classes_of_modules_can_be_registered() -> None:
    nothing: Any = None
    with pytest.raises(TypeError, match="NoneType"):
        register_module(nothing)
    with pytest.raises(TypeError, match="int"):
        register_module(ModuleSpec())(int)  # type: ignore[type-var]


def test_types_without_a_spec() -> None:
    layer = nn.LayerNorm(8)
    assert spec_of(layer) is None
    assert channels(layer, "out") == 0
    assert "LayerNorm" in (refusal(layer) or "")
    (found,), _ = groups_and_protected(*flat(nn.BatchNorm2d(8)))
    group = PruningGroup("conv_0", ("0",), 8, found.members)
    with pytest.raises(PruningError, match=r"1.*LayerNorm"):
        build(flat(nn.LayerNorm((8, 8, 8)))[0], [group], {"conv_0": torch.arange(8)}, (4,))


def flat(norm: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), norm, nn.Conv2d(8, 4, 8), nn.Flatten()), torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("module", "sides"),
    [
        (nn.Conv2d(4, 6, 3), (4, 6)),
        (nn.ConvTranspose1d(4, 6, 3), (4, 6)),
        (nn.Conv2d(4, 8, 3, groups=4), (0, 8)),
        (nn.Linear(5, 3), (5, 3)),
        (nn.BatchNorm3d(7), (0, 7)),
        (nn.InstanceNorm1d(7), (0, 7)),
        (nn.PReLU(9), (0, 9)),
        (ZeroPadShortcut(4, 8), (4, 8)),
        (nn.ReLU(), (0, 0)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_channels_of_known_types(module: nn.Module, sides: tuple[int, int]) -> None:
    assert (channels(module, "in"), channels(module, "out")) == sides


def test_a_prelu_that_keeps_one_slope_has_one_channel() -> None:
    model, images = random_network(["Slopes"], "mean", 0)
    (group,) = inspect(model, images).groups
    slopes = [member.module for member in group.members if "activation" in member.module]
    small = build(model, [group], {group.name: torch.arange(group.filters)}, (1,))
    assert [channels(small.get_submodule(path), "out") for path in slopes] == [1]
