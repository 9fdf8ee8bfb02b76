"""The program computes the outputs and BatchNorm statistics of networks that are cut without it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structures import KINDS, random_network
from torch import fx, nn
from torch.nn import functional as F

from benchmarks.make.zoo import make
from prune_env.evaluation.engine.fused_conv import FusedConv
from prune_env.evaluation.engine.fusion import fused_graph
from prune_env.evaluation.engine.program import Program
from prune_env.networks import list_networks
from prune_env.pruning import Plan, PruningGroup, build, inspect
from prune_env.scoring.batchnorm import recalibrate

Ranking = dict[str, torch.Tensor]


def random_plan(groups: Sequence[PruningGroup], seed: int) -> tuple[Ranking, Plan]:
    generator = torch.Generator().manual_seed(seed)
    ranking = {group.name: torch.randperm(group.filters, generator=generator) for group in groups}
    return ranking, tuple(int(torch.randint(1, g.filters + 1, (), generator=generator)) for g in groups)


def assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape
    assert (found.float() - expected).abs().max() <= tolerance * expected.abs().max()


def check(model: nn.Module, images: torch.Tensor, seed: int = 0) -> Program:
    """Compare the program with cut networks: for several plans, after recalibration, and with trained weights."""
    before = copy.deepcopy(model.state_dict())
    groups = list(inspect(model, images, prove=False).groups)
    program = Program(model, groups, images, dtype=torch.float32)
    with torch.inference_mode():
        for number in range(3):
            ranking, plan = random_plan(groups, seed + number)
            program.load(ranking, plan)
            cut = build(model, groups, ranking, plan).eval()
            assert_same(program.network(images), cut(images))
        recalibrate(cut, (images, 2 * images))
        program.recalibrate((images, 2 * images))
        assert_same(program.network(images), cut(images), 1e-3)
        full = tuple(group.filters for group in groups)
        program.load(ranking, full)
        assert_same(program.network(images), model(images))
        for tensor in (*cut.parameters(), *cut.buffers()):  # stands for training
            if tensor.is_floating_point():
                tensor.mul_(1.05)
        program.load_network(cut)
        assert_same(program.network(images), cut(images), 1e-3)
        program.load(ranking, full)
        assert_same(program.network(images), model(images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return program


@pytest.fixture
def all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prune_env.evaluation.engine.program.POSITIONS", 10**9)


@pytest.mark.usefixtures("all_positions")
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=() if name == "resnet20" else pytest.mark.slow) for name in list_networks()),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "shufflenet_v2_x0_5")),
    ],
)
def test_known_networks_are_fused_completely(name: str) -> None:
    """Every convolution is fused with the operations behind it: no BatchNorm and no ReLU is left."""
    model, images = make(name)
    program = check(model, images.tile(2, 1, 1, 1)[:, :, :64, :64])
    assert isinstance(program.network, fx.GraphModule)
    left = [type(module).__name__ for module in program.network.modules()]
    assert "BatchNorm2d" not in left
    assert "Conv2d" not in left
    assert not any(node.type for node in program.network.graph.nodes), "a graph with annotations may not be picklable"
    if name.startswith("resnet"):  # with an addition between convolution and ReLU
        assert not any(node.op == "call_function" and node.target is F.relu for node in program.network.graph.nodes)
        assert any(conv.overwrites for conv in program.network.modules() if isinstance(conv, FusedConv))


@pytest.mark.slow
@pytest.mark.usefixtures("all_positions")
@pytest.mark.parametrize(
    "name", ["densenet121", "googlenet", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf"]
)
def test_every_family(name: str) -> None:
    model, images = make(name)
    check(model, images.tile(4, 1, 1, 1))


UNTRACEABLE = {"C2f", "CrossStage", "Heads", "Sampled"}
"""Structures that symbolic tracing refuses, or whose numbers it turns into constants."""


@pytest.mark.parametrize("kind", ["CrossStage", "Heads"])
def test_a_refused_program_prints_nothing(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    model, images = random_network([kind], "mean", 0)
    check(model, images.tile(4, 1, 1, 1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.sampled_from(sorted(set(KINDS) - {"HardReshape"})), min_size=1, max_size=5),
    seed=st.integers(0, 10_000),
)
def test_random_networks_are_fused(kinds: list[str], seed: int) -> None:
    model, images = random_network(kinds, "mean", seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prune_env.evaluation.engine.program.POSITIONS", 10**9)
        program = check(model, images.tile(4, 1, 1, 1), seed)
    if not UNTRACEABLE & set(kinds):
        assert not program.refused
        assert isinstance(program.network, fx.GraphModule)


class Branching(nn.Module):
    """Has an `if` on a tensor, which cannot be traced symbolically."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.wrapped = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn(self.conv(x)))
        if y.sum() > -1:
            y = y + self.wrapped(y)
        return self.head(y.mean((2, 3)))


class InPlaceReLU(nn.Module):
    """Cannot be traced either, and a ReLU writes to the convolution's output before BatchNorm reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y.relu_()
        if y.sum() > -1:
            y = self.bn(y)
        return self.head(y.mean((2, 3)))


class Wired(nn.Module):
    """Additions to features that are read, or written to, before or afterwards."""

    def __init__(self, how: str, kernel: int = 1, width: int = 32) -> None:
        super().__init__()
        self.how = how
        for number in range(4):
            conv = nn.Conv2d(width if number else 3, width, kernel, padding=kernel // 2, bias=number % 2 == 0)
            self.add_module(f"c{number}", conv)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = F.relu(self.c0(x))
        read = first
        if self.how == "its own input":
            added = F.relu(self.c1(first) + first)
            read = added
        elif self.how == "again":
            added = F.relu(self.c1(self.c2(first)) + first)
        elif self.how == "a view":
            read = first.flatten(2).unsqueeze(2)
            added = F.relu(self.c1(self.c2(first)) + first)
        elif self.how == "in place":  # `first` is written to, and read
            added = first.add_(self.c1(first))
        elif self.how == "a later reader":  # c2's addition comes after the one that could overwrite its input
            late = self.bn(self.c2(first))
            added = self.c1(self.c3(first)) + first
            read = added = F.relu(late + added)
        elif self.how == "written before the sum":
            early = self.c1(first)
            added = self.c2(first.relu_().mul_(0.5)) + early
        else:  # the usual block
            read = added = F.relu(self.bn(self.c2(F.relu(self.c1(first)))) + first)
        return self.head(torch.cat((added.mean((2, 3)), read.mean((2, 3))), 1))


class Normalising(nn.Module):
    """Uses buffers in its forward pass, and float32 or masked outputs."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]))
        self.register_buffer("mask", torch.tensor([0.0, 0, 0, 0, float("-inf")]))
        self.conv, self.bn, self.read = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.conv(x - self.mean.view(1, -1, 1, 1))).relu()
        y = (self.read(y) + (y.sigmoid().float() if self.how == "float32" else y)).to(x.dtype)
        y = self.head(y.mean((2, 3)))
        return y + self.mask if self.how == "masked" else y


@pytest.mark.usefixtures("all_positions")
def test_a_network_that_cannot_be_traced_symbolically() -> None:
    model, images = Branching().eval(), torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    program = check(model, images)
    assert isinstance(program.network, Branching)
    assert isinstance(program.network.conv, FusedConv)


@pytest.mark.usefixtures("all_positions")
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    "how", ["its own input", "again", "a view", "in place", "a later reader", "written before the sum", "block"]
)
def test_memory_is_overwritten_only_if_it_is_not_read_again(how: str, kernel: int) -> None:
    model = Wired(how, kernel).eval()
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = fused_graph(copy.deepcopy(model), images)  # without the program, which would discard a wrong graph
    for conv in (module for module in graph.modules() if isinstance(module, FusedConv)):
        conv.fold(torch.float32)
    with torch.inference_mode():
        assert_same(graph(images), model(images))
    program = check(model, images)
    assert not program.refused
    overwriting = [conv for conv in program.network.modules() if isinstance(conv, FusedConv) and conv.overwrites]
    assert len(overwriting) == (how in ("block", "a later reader", "written before the sum"))


@pytest.mark.usefixtures("all_positions")
@pytest.mark.parametrize("how", ["plain", "float32", "masked"])
def test_networks_with_buffers_casts_and_masked_outputs(how: str) -> None:
    model, images = Normalising(how).eval(), torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    groups = list(inspect(model, images, prove=False).groups)
    program = Program(model, groups, images, dtype=torch.bfloat16)
    assert not program.refused
    ranking, plan = random_plan(groups, 0)
    program.load(ranking, plan)
    with torch.inference_mode():
        found = program.network(images.bfloat16())[:, :4].float()
        assert_same(found, build(model, groups, ranking, plan).eval()(images)[:, :4], 0.05)
        if how != "masked":
            check(model, images)


@pytest.mark.usefixtures("all_positions")
def test_a_network_in_which_nothing_can_be_fused() -> None:
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    program = check(InPlaceReLU().eval(), images)
    assert program.refused


@pytest.mark.usefixtures("all_positions")
def test_a_compiled_network_that_starts_with_batchnorm() -> None:
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).eval()
    compiled = torch.compile(model)
    groups = list(inspect(model, images, prove=False).groups)
    program = Program(compiled, groups, images, dtype=torch.float32)  # type: ignore[arg-type]
    with torch.inference_mode():
        program.recalibrate((5 * images,))
        program.load(*random_plan(groups, 1))
        program.load(random_plan(groups, 1)[0], (8,))
        assert_same(program.network(images), model(images))


def test_a_plan_can_be_loaded_after_an_interrupted_recalibration() -> None:
    model, images = make("resnet20")
    groups = list(inspect(model, images, prove=False).groups)
    program = Program(model, groups, images, dtype=torch.float32)

    def interrupted() -> Iterator[torch.Tensor]:
        yield images
        raise KeyboardInterrupt

    with torch.inference_mode():
        before = program.network(images)
        with pytest.raises(KeyboardInterrupt):
            program.recalibrate(interrupted())
        program.load({g.name: torch.arange(g.filters) for g in groups}, tuple(g.filters for g in groups))
        assert torch.equal(program.network(images), before)


def test_outputs_in_bfloat16_are_almost_the_same() -> None:
    model, images = make("resnet20")
    groups = list(inspect(model, images, prove=False).groups)
    program = Program(model, groups, images, dtype=torch.bfloat16)
    ranking, plan = random_plan(groups, 0)
    program.load(ranking, plan)
    with torch.inference_mode():
        found = program.network(images.bfloat16().to(memory_format=torch.channels_last))
        assert found.dtype == torch.bfloat16
        assert_same(found, build(model, groups, ranking, plan).eval()(images), 0.05)
