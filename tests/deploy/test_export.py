"""An exported file computes the same as the network, and nothing else is written or changed."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from prune_env.common.command import missing_packages
from prune_env.common.onnx_session import PACKAGES
from prune_env.data import DataSplits
from prune_env.deploy import export
from prune_env.export import ExportError, to_onnx, to_torch_export
from prune_env.networks import create, list_networks
from prune_env.networks.registry import image_size
from prune_env.pruning.problem import ProblemConfig, PruningProblem

Write = Callable[[nn.Module, Path, torch.Tensor], float]
WRITERS = pytest.mark.parametrize(("write", "name"), [(to_onnx, "a.onnx"), (to_torch_export, "a.pt2")])


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Flickering(Tiny):
    """Computes something else when it is traced than when it runs, so the exported network is wrong."""

    def __init__(self, other: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.other = other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = super().forward(x)
        return output if torch.compiler.is_compiling() else self.other(output)


class FixedBatch(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).view(2, 10)


class TwoOutputs(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


@pytest.fixture
def images(digits: DataSplits) -> torch.Tensor:
    return digits.normalise(digits.test.images[:30])


@pytest.fixture
def pruned(trained: nn.Module, digits: DataSplits) -> nn.Module:
    return PruningProblem.create(trained, digits, ProblemConfig(prove=False)).build((16, 20, 30, 40, 100)).eval()


def test_onnx_runs_at_any_batch_size(pruned: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    difference = to_onnx(pruned, tmp_path / "deep" / "a.onnx", images)
    assert 0 <= difference <= 1e-4
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["a.onnx"]  # and no separate data file
    proto = onnx.load(tmp_path / "deep" / "a.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert str(tmp_path.parent).encode() not in proto.SerializeToString()
    assert str(Path(__file__).parents[2]).encode() not in proto.SerializeToString(), "a local path is in the file"
    session = onnxruntime.InferenceSession(tmp_path / "deep" / "a.onnx")
    assert [value.name for value in (*session.get_inputs(), *session.get_outputs())] == ["images", "logits"]
    for count in (1, 2, 5, 30):
        found = session.run(None, {"images": images[:count].contiguous().numpy()})[0]
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(found), pruned(images[:count]), rtol=1e-4, atol=1e-4)


def test_data_parallel_networks_are_unwrapped(pruned: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    for write, name in ((to_onnx, "a.onnx"), (to_torch_export, "a.pt2")):
        assert write(nn.DataParallel(pruned), tmp_path / name, images) <= 1e-4


@pytest.mark.slow
def test_torch_export_runs_without_this_package(pruned: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    file = tmp_path / "a.pt2"
    assert to_torch_export(pruned, file, images) <= 1e-6
    assert str(Path(__file__).parents[2]).encode() not in file.read_bytes(), "a local path is in the file"
    torch.save(images.contiguous(), tmp_path / "images.pt")
    code = (
        "import sys, torch\n"
        "network = torch.export.load('a.pt2').module()\n"
        "images = torch.load('images.pt')\n"
        "with torch.no_grad():\n"
        "    torch.save([network(images[:count]) for count in (1, 3, 30)], 'outputs.pt')\n"
        "assert 'prune_env' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    with torch.inference_mode():
        for output in torch.load(tmp_path / "outputs.pt"):
            torch.testing.assert_close(output, pruned(images[: len(output)]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_networks())
def test_every_registered_network(name: str, tmp_path: Path) -> None:
    network = create(name, 10, 3)
    images = torch.randn((3, 3, *image_size(name)), generator=torch.Generator().manual_seed(0))
    assert to_onnx(network, tmp_path / "a.onnx", images) <= 1e-4
    assert to_torch_export(network, tmp_path / "a.pt2", images) <= 1e-6


@WRITERS
def test_the_model_and_the_process_are_not_changed(
    write: Write,
    name: str,
    images: torch.Tensor,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    untouched_rngs: None,
) -> None:
    with torch.random.fork_rng(devices=[]):
        model = Tiny()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def state() -> tuple[object, ...]:
        loggers = {name: logging.getLogger(name).level for name in ("torch", "torch.onnx", "onnxscript", "")}
        switches = torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype(), len(warnings.filters)
        return loggers, switches, logging.root.manager.disable, logging.root.handlers[:], sys.stdout, sys.stderr

    import onnxscript  # noqa: F401  (importing it sets up a logger)

    expected = state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(model, tmp_path / name, images)
        with torch.inference_mode():
            write(model, tmp_path / name, images)
    assert capfd.readouterr() == ("", "")
    assert state() == expected
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not next(model.parameters()).grad
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_dtypes(images: torch.Tensor, tmp_path: Path) -> None:
    """ONNX is float32, as onnxruntime has few bfloat16 kernels; torch.export keeps the network's dtype."""
    model = Tiny().bfloat16().eval()
    to_onnx(model, tmp_path / "a.onnx", images)
    assert onnx.load(tmp_path / "a.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    to_torch_export(model, tmp_path / "a.pt2", images)
    loaded = torch.export.load(tmp_path / "a.pt2").module()
    assert torch.equal(loaded(images.bfloat16()), model(images.bfloat16()))
    assert model.conv.weight.dtype == torch.bfloat16


@WRITERS
@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Flickering(lambda output: 1.01 * output), r"0\.0(1|099) of the largest output"),
        (Flickering(lambda output: output * float("nan")), "nan of the largest output"),
        (Flickering(lambda output: output[:, :9]), r"\(30, 10\).*\(30, 9\)"),
        (FixedBatch(), "batch size"),
        (TwoOutputs(), "tuple"),
    ],
    ids=["other values", "nan", "other shape", "fixed batch size", "two outputs"],
)
def test_a_network_that_cannot_be_exported_leaves_no_file(
    write: Write, name: str, model: nn.Module, named: str, images: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=named) as error:
        write(model, tmp_path / name, images)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@WRITERS
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (0, 1, 8, 8), (1, 8, 8)])
def test_images_must_be_a_batch(write: Write, name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=re.escape(str(shape))):
        write(Tiny(), tmp_path / name, torch.zeros(shape))


@WRITERS
def test_a_killed_writer_leaves_the_old_file(
    write: Write, name: str, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(Tiny(), tmp_path / name, images)
    assert (tmp_path / name).read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_too_large_for_onnx(images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ONNX_LIMIT", 100)
    with pytest.raises(ExportError, match="100; use to_torch_export"):
        to_onnx(Tiny(), tmp_path / "a.onnx", images)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_named(
    package: str, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not missing_packages(PACKAGES)
    monkeypatch.setitem(sys.modules, package, None)
    assert missing_packages(PACKAGES) == [package]
    with pytest.raises(ImportError, match=rf"{package}.*\[export\]"):
        to_onnx(Tiny(), tmp_path / "a.onnx", images)
    assert to_torch_export(Tiny(), tmp_path / "a.pt2", images) <= 1e-6
