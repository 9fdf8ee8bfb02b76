"""The program computes what the network computes, plan after plan, and estimates statistics as training does."""

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
from prune_env.evaluation.engine.fused_conv import FusedConv, sample
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
    """Plans in turn, then the whole network again, a trained one, and statistics of two batches."""
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
        for tensor in (*cut.parameters(), *cut.buffers()):  # as training may leave them
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
@pytest.mark.parametrize("name", [*list_networks(), "resnet18", "shufflenet_v2_x0_5"])
def test_known_networks(name: str) -> None:
    """Every convolution is fused with all that follows it: no BatchNorm and no ReLU is left."""
    model, images = make(name)
    program = check(model, images.tile(2, 1, 1, 1)[:, :, :64, :64])
    assert isinstance(program.network, fx.GraphModule)
    left = [type(module).__name__ for module in program.network.modules()]
    assert "BatchNorm2d" not in left
    assert "Conv2d" not in left
    assert not any(node.type for node in program.network.graph.nodes), "a graph with annotations may not pickle"
    if name.startswith("resnet"):  # an addition stands between convolution and ReLU
        assert not any(node.op == "call_function" and node.target is F.relu for node in program.network.graph.nodes)
        assert any(unit.overwrites for unit in program.network.modules() if isinstance(unit, FusedConv))


@pytest.mark.slow
@pytest.mark.usefixtures("all_positions")
@pytest.mark.parametrize(
    "name", ["densenet121", "googlenet", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf"]
)
def test_every_family(name: str) -> None:
    model, images = make(name)
    check(model, images.tile(4, 1, 1, 1))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.sampled_from(sorted(set(KINDS) - {"HardReshape"})), min_size=1, max_size=5),
    seed=st.integers(0, 10_000),
)
def test_random_networks(kinds: list[str], seed: int) -> None:
    model, images = random_network(kinds, "mean", seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prune_env.evaluation.engine.program.POSITIONS", 10**9)
        program = check(model, images.tile(4, 1, 1, 1), seed)
    assert not program.refused
    assert isinstance(program.network, fx.GraphModule)


class Branching(nn.Module):
    """No symbolic trace gets past its `if`."""

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


class Fresh(nn.Module):
    """No trace, and a ReLU that writes to what the convolution returned: the BatchNorm reads something else."""

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
    """Additions in every order of reading and writing that memory could be taken in."""

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
    """Buffers that forward computes with, float32 on purpose here and there, and outputs that are masked."""

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
def test_memory_is_overwritten_when_nobody_reads_it_any_more(how: str, kernel: int) -> None:
    model = Wired(how, kernel).eval()
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = fused_graph(copy.deepcopy(model), images)  # itself: no check comes to its rescue
    for unit in (module for module in graph.modules() if isinstance(module, FusedConv)):
        unit.fold(torch.float32)
    with torch.inference_mode():
        assert_same(graph(images), model(images))
    program = check(model, images)
    assert not program.refused
    overwriting = [unit for unit in program.network.modules() if isinstance(unit, FusedConv) and unit.overwrites]
    assert len(overwriting) == (how in ("block", "a later reader", "written before the sum"))


@pytest.mark.usefixtures("all_positions")
@pytest.mark.parametrize("how", ["plain", "float32", "masked"])
def test_buffers_precisions_and_masks(how: str) -> None:
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
def test_compiled_networks_and_those_that_no_trace_gets_through() -> None:
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    program = check(Fresh().eval(), images)
    assert len(program.refused) >= 1
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).eval()
    compiled = torch.compile(model)
    groups = list(inspect(model, images, prove=False).groups)
    program = Program(compiled, groups, images, dtype=torch.float32)  # type: ignore[arg-type]
    with torch.inference_mode():
        program.recalibrate((5 * images,))
        program.load(*random_plan(groups, 1))
        program.load(random_plan(groups, 1)[0], (8,))
        assert_same(program.network(images), model(images))


def test_an_interrupted_recalibration_leaves_nothing_behind() -> None:
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


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("size", [1, 5])
def test_units_with_and_without_onednn(monkeypatch: pytest.MonkeyPatch, fused: bool, channels: int, size: int) -> None:
    """Calibrating, and folded with what that found; also where one channel or position leaves the layout open."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: fused)
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(6, channels, size, size, generator=generator) for _ in range(2))
    conv, norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels, momentum=1.0)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        for added, overwrites in ((None, False), (other, False), (other, True)):
            unit = FusedConv(copy.deepcopy(conv), copy.deepcopy(norm), relu=True)
            unit.overwrites = overwrites
            with torch.inference_mode():
                unit.start_calibration(dtype)
                for training in (True, False):
                    expected = F.relu(norm.train(training)(conv(x)) + (0 if added is None else added))
                    given = [t.to(dtype, memory_format=torch.channels_last) for t in (x, added) if t is not None]
                    assert_same(unit(*(tensor.clone() for tensor in given)), expected, tolerance)
                    unit.end_calibration(dtype)


@pytest.mark.parametrize("shape", [(6, 2, 5, 3), (3, 2, 50, 4), (40, 2, 7, 7), (1, 2, 64, 2)])
@pytest.mark.parametrize("positions", [1, 60, 100, 10**9])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sampled_values_are_whole_lines_from_all_over_every_image(
    shape: tuple[int, ...], positions: int, layout: torch.memory_format
) -> None:
    count, _, height, width = shape
    area = height * width
    y = torch.arange(torch.Size(shape).numel()).view(shape).contiguous(memory_format=layout)
    found = sample(y, positions)  # [N, 2]
    assert len(found) == len(found.unique(dim=0)), "no value twice"
    assert len(found) >= min(positions, count * area)
    first = found[:, 0]
    assert torch.equal(found[:, 1] - first, torch.full_like(first, area)), "channels stay together"
    image, line = first // (2 * area), first % (2 * area) // width
    assert len(image.unique()) == count
    lines = min(height, -(-positions // (count * width)))
    assert len(found) == count * width * lines
    everywhere = line.unique()
    gaps = torch.diff(everywhere, prepend=torch.tensor([-1]), append=torch.tensor([height]))
    assert gaps.max() <= max(2, -(-2 * height // (count * lines))), "no part of the picture is left out"


def test_fast_precision_gives_nearly_the_same() -> None:
    model, images = make("resnet20")
    groups = list(inspect(model, images, prove=False).groups)
    program = Program(model, groups, images, dtype=torch.bfloat16)
    ranking, plan = random_plan(groups, 0)
    program.load(ranking, plan)
    with torch.inference_mode():
        found = program.network(images.bfloat16().to(memory_format=torch.channels_last))
        assert found.dtype == torch.bfloat16
        assert_same(found, build(model, groups, ranking, plan).eval()(images), 0.05)
