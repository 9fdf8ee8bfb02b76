"""Timing does not change models, threads and random state, counts its runs, and treats all networks alike."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn

from prune_env.export import to_onnx
from prune_env.scoring import latency as module
from prune_env.scoring.latency import RUNS_PER_TURN, Latency, TimingConfig, latencies, latency, time_forward

ONCE = TimingConfig(warmup=0, seconds=0, min_runs=1)


class Spy(nn.Module):
    """Calls a function in every forward pass. Copies of the network share the function."""

    def __init__(self, report: Callable[[nn.Module, torch.Tensor], object], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, dtype=dtype)
        self.dropout = nn.Dropout()
        self.report = report

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.report(self, x)
        return self.dropout(self.conv(x))


@pytest.fixture
def channels_last_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run no network to find its memory format, so that all runs are counted."""
    monkeypatch.setattr(module, "memory_format", lambda *_: torch.channels_last)


@pytest.mark.usefixtures("channels_last_only")
def test_every_run_is_in_eval_mode_on_the_same_channels_last_noise() -> None:
    seen: list[tuple[bool, bool, bool, tuple[int, ...], torch.dtype]] = []
    images: list[torch.Tensor] = []

    def report(model: nn.Module, x: torch.Tensor) -> None:
        last = x.is_contiguous(memory_format=torch.channels_last)
        seen.append(
            (any(part.training for part in model.modules()), torch.is_inference_mode_enabled(), last, x.shape, x.dtype)
        )
        images.append(x)

    spy = Spy(report, torch.bfloat16).train()
    result = latency(spy, (3, 5, 7), 4, replace(ONCE, warmup=1))
    latency(spy, (3, 5, 7), 4, ONCE)
    assert set(seen) == {(False, True, True, (4, 3, 5, 7), torch.bfloat16)}
    assert all(torch.equal(image, images[0]) for image in images)
    assert images[0].std() > 0.5
    assert (result.batch_size, result.dtype) == (4, "bfloat16")


def test_model_threads_and_random_state_are_not_changed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(), nn.ReLU()))
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    result = latency(model, (3, 8, 8), 2, replace(ONCE, threads=threads + 1))
    assert result.threads == threads + 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model[0].weight.is_contiguous()


def test_threads_are_restored_after_an_error() -> None:
    def fail(_model: nn.Module, _x: torch.Tensor) -> None:
        raise ArithmeticError

    threads = torch.get_num_threads()
    with pytest.raises(ArithmeticError):
        latency(Spy(fail), (3, 4, 4), 1, TimingConfig(threads=threads + 1))
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("channels_last_only")
def test_networks_take_turns_after_their_warm_up() -> None:
    calls: list[str] = []
    models = {name: Spy(lambda _model, _x, name=name: calls.append(name)) for name in ("a", "b", "c")}
    results = latencies(models, (3, 4, 4), 1, TimingConfig(warmup=3, seconds=0, min_runs=2 * RUNS_PER_TURN + 1))
    assert list(results) == ["a", "b", "c"]
    assert [result.runs for result in results.values()] == [3 * RUNS_PER_TURN] * 3
    runs = [(name, len(list(group))) for name, group in groupby(calls)]
    assert runs == [(name, 3) for name in "abc"] + 3 * [(name, 1 + RUNS_PER_TURN) for name in "abc"]


@pytest.mark.usefixtures("channels_last_only")
def test_the_median_is_that_of_the_timed_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm-up and the first run of a turn take 9 s on a fake clock, the timed runs 1, 1, 2 and 100 ms."""
    durations = iter([9.0] * 2 + [9.0, 0.001, 0.001, 0.002, 0.1])
    clock = [0.0]

    def advance(_model: nn.Module, _x: torch.Tensor) -> None:
        clock[0] += next(durations)

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    result = latency(Spy(advance), (3, 1, 1), 1, TimingConfig(warmup=2, seconds=0, min_runs=4, max_seconds=100))
    assert result == Latency(pytest.approx(1.5), pytest.approx(1.0), 1, 4, torch.get_num_threads(), "float32")  # type: ignore[arg-type]


@pytest.mark.usefixtures("channels_last_only")
@pytest.mark.parametrize(("slow_s", "calls"), [(0.1, 5 + 25), (1.0, 5 + 15), (3.0, 2 + 5), (50.0, 1 + 2)])
def test_a_slow_network_is_run_less_often(slow_s: float, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two networks takes much longer on a fake clock; by default a network has 20 s, a quarter for warm-up."""
    clock, slow_calls = [0.0], []

    def advance(_model: nn.Module, _x: torch.Tensor) -> None:
        clock[0] += slow_s
        slow_calls.append(clock[0])

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    networks = {"slow": Spy(advance), "fast": Spy(lambda _model, _x: None)}
    results = latencies(networks, (3, 1, 1), 1, TimingConfig(seconds=0))
    assert len(slow_calls) == calls
    assert results["slow"].median_ms == pytest.approx(1000 * slow_s)
    assert results["fast"].runs >= RUNS_PER_TURN


def test_measuring_takes_the_given_seconds() -> None:
    result = latency(nn.Identity(), (1, 1, 1), 1, TimingConfig(warmup=0, seconds=0.05, min_runs=1))
    assert result.runs > 100  # an identity takes microseconds


def test_more_work_takes_longer() -> None:
    """The networks differ by 3,000 times in MACs, so noise cannot change the order."""
    small, large = nn.Conv2d(3, 2, 1), nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1))
    results = latencies({"large": large, "small": small}, (3, 32, 32), 8, TimingConfig(seconds=0, min_runs=8))
    assert results["large"].median_ms > 3 * results["small"].median_ms > 0


def test_the_gpu_is_synchronised_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class OnCuda:
        is_cuda, device = True, torch.device("cuda")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: events.append("synchronise"))
    monkeypatch.setattr("time.perf_counter", lambda: events.append("clock") or 0.0)
    time_forward(lambda _images: events.append("model"), OnCuda())  # type: ignore[arg-type]
    assert events == ["synchronise", "clock", "model", "synchronise", "clock"]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("onnx") / "network.onnx"
    to_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), file, torch.rand(2, 3, 8, 8))
    return file


def test_onnxruntime_takes_turns_with_torch(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[Any] = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *args, **kwargs: options.append(args[1]) or session(*args, **kwargs)
    )
    calls: list[tuple[str, torch.Size]] = []

    def spy(network: Callable[[torch.Tensor], Any], images: torch.Tensor) -> float:
        calls.append(("torch" if isinstance(network, nn.Module) else "onnxruntime", images.shape))
        return time_forward(network, images)

    monkeypatch.setattr(module, "time_forward", spy)
    threads = torch.get_num_threads()
    models = {"a": nn.Conv2d(3, 4, 3).bfloat16(), "b": onnx_file}
    config = TimingConfig(warmup=2, seconds=0, min_runs=1 + RUNS_PER_TURN, threads=threads + 1)
    results = latencies(models, (3, 8, 8), 5, config)
    assert [(r.runtime, r.dtype, r.batch_size, r.threads, r.runs) for r in results.values()] == [
        ("torch", "bfloat16", 5, threads + 1, 2 * RUNS_PER_TURN),
        ("onnxruntime", "float32", 5, threads + 1, 2 * RUNS_PER_TURN),
    ]
    assert results["b"].median_ms > 0
    assert [option.intra_op_num_threads for option in options] == [threads + 1]
    assert torch.get_num_threads() == threads
    turns = [(name, len(list(group))) for (name, _), group in groupby(calls)]
    assert turns == [(name, 2) for name in ("torch", "onnxruntime")] + 2 * [
        (name, 1 + RUNS_PER_TURN) for name in ("torch", "onnxruntime")
    ]
    assert {shape for _, shape in calls} == {(5, 3, 8, 8)}


def test_onnx_files_that_cannot_be_timed(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx"):
        latency(tmp_path / "missing.onnx", (3, 8, 8), 1)
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"broken\.onnx"):
        latency(tmp_path / "broken.onnx", (3, 8, 8), 1)
    with pytest.raises(ValueError, match=r"device .*cuda"):
        latency(onnx_file, (3, 8, 8), 1, TimingConfig(device="cuda"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="onnxruntime"):
        latency(onnx_file, (3, 8, 8), 1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"models": {}}, "models"),
        ({"example_shape": (1, 3, 8, 8)}, "example_shape"),
        ({"example_shape": (3, 0, 8)}, "example_shape"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], named: str) -> None:
    arguments: dict[str, Any] = {"models": {"a": nn.Identity()}, "example_shape": (3, 8, 8), "batch_size": 1}
    with pytest.raises(ValueError, match=named):
        latencies(**{**arguments, **wrong})


@pytest.mark.parametrize("wrong", [{"warmup": -1}, {"min_runs": 0}, {"max_seconds": 0}, {"threads": 0}])
def test_wrong_settings_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TimingConfig(**wrong)
