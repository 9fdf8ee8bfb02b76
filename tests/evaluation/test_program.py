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

from benchmarks.zoo import make
from prune_env.evaluation import units
from prune_env.evaluation.batchnorm import recalibrate
from prune_env.evaluation.program import Program
from prune_env.evaluation.units import Unit, sample
from prune_env.networks import NETWORKS
from prune_env.pruning import Plan, PruningGroup, build, inspect

Ranking = dict[str, torch.Tensor]


def random_plan(groups: Sequence[PruningGroup], seed: int) -> tuple[Ranking, Plan]:
    generator = torch.Generator().manual_seed(seed)
    ranking = {group.agent_id: torch.randperm(group.filters, generator=generator) for group in groups}
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
        program.load(ranking, tuple(group.filters for group in groups))
        assert_same(program.network(images), model(images))
        program.load_network(cut)
        assert_same(program.network(images), cut(images), 1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return program


@pytest.fixture
def all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "POSITIONS", 10**9)


@pytest.mark.usefixtures("all_positions")
@pytest.mark.parametrize("name", [*NETWORKS, "resnet18", "shufflenet_v2_x0_5"])
def test_known_networks(name: str) -> None:
    """Every convolution is fused with all that follows it: no BatchNorm and no ReLU is left beside them."""
    model, images = make(name)
    program = check(model, images.tile(2, 1, 1, 1)[:, :, :64, :64])
    assert isinstance(program.network, fx.GraphModule)
    left = [type(module).__name__ for module in program.network.modules()]
    assert "BatchNorm2d" not in left
    assert "Conv2d" not in left
    if name.startswith("resnet"):  # an addition stands between convolution and ReLU
        assert not any(node.op == "call_function" and node.target is F.relu for node in program.network.graph.nodes)
        assert any(unit.overwrites for unit in program.network.modules() if isinstance(unit, Unit))


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
        patch.setattr(units, "POSITIONS", 10**9)
        check(model, images.tile(4, 1, 1, 1), seed)


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


class Reread(nn.Module):
    """A sum's first term is read once more afterwards, so its memory must not take the result."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = F.relu(self.first(x))
        view = first.flatten(2) if self.how == "view" else first
        added = F.relu(self.second(first) + first)
        if self.how == "in place":  # `first` is written to, and read
            added = first.add_(self.second(first))
        pair = view.mean(2) if self.how == "view" else first.mean((2, 3))
        return self.head(torch.cat((added.mean((2, 3)), pair), 1))


@pytest.mark.usefixtures("all_positions")
def test_a_network_that_cannot_be_traced_symbolically() -> None:
    model, images = Branching().eval(), torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    program = check(model, images)
    assert isinstance(program.network, Branching)
    assert isinstance(program.network.conv, Unit)


@pytest.mark.usefixtures("all_positions")
@pytest.mark.parametrize("how", ["again", "view", "in place"])
def test_memory_that_is_read_again_is_not_overwritten(how: str) -> None:
    check(Reread(how).eval(), torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("size", [1, 5])
def test_units_with_and_without_onednn(monkeypatch: pytest.MonkeyPatch, fused: bool, channels: int, size: int) -> None:
    """Also where one channel or one position leaves the layout open."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: fused)
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(6, channels, size, size, generator=generator) for _ in range(2))
    conv, norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        for added in (None, other):
            for overwrites in (False, True):
                unit = Unit(copy.deepcopy(conv), copy.deepcopy(norm).eval(), relu=True, overwrites=overwrites)
                given = [t.to(dtype).to(memory_format=torch.channels_last).clone() for t in (x, added) if t is not None]
                with torch.inference_mode():
                    for calibrating in (True, False):
                        norm.train(calibrating)
                        expected = F.relu(norm(conv(x)) + (0 if added is None else added))
                        (unit.start_calibration if calibrating else unit.fold)(dtype)
                        unit.calibrating = calibrating
                        unit.norm.running_mean, unit.norm.running_var = norm.running_mean, norm.running_var
                        if not calibrating:
                            unit.fold(dtype)
                        found = unit(*(tensor.clone() for tensor in given))
                        assert_same(found, expected, tolerance)


def values(shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    yield torch.arange(torch.Size(shape).numel()).view(shape)
    yield torch.arange(torch.Size(shape).numel()).view(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("positions", [1, 60, 100, 10**9])
def test_sampled_values_are_whole_lines_of_every_image(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    monkeypatch.setattr(units, "POSITIONS", positions)
    for y in values((6, 2, 5, 3)):
        found = sample(y)  # [N, 2]
        assert len(found) == len(found.unique(dim=0)), "no value twice"
        first = found[:, 0]
        assert torch.equal(found[:, 1] - first, torch.full_like(first, 15)), "channels stay together"
        image, place = first // 30, first % 30
        assert len(image.unique()) == 6
        lines = min(5, max(1, positions // 18))
        assert len(found) == 6 * 3 * lines
        assert len((place // 3).unique()) == 5, "every line of the picture comes up in some image"


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
