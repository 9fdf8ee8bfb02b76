"""An int8 file classifies like the float file it was made from, and mistakes leave no file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from prune_env.data import DataSplits
from prune_env.deploy import quantise
from prune_env.deploy.quantise import calibration_images, int8_file
from prune_env.export import ExportError, quantise_onnx, to_onnx
from prune_env.scoring.metric import accuracy, onnx_accuracy


@pytest.fixture(scope="module")
def images(digits: DataSplits) -> torch.Tensor:
    return calibration_images(digits)


@pytest.fixture(scope="module")
def float_file(trained: nn.Module, images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("float") / "a.onnx"
    to_onnx(trained, file, images[:8])
    return file


@pytest.mark.usefixtures("untouched_rngs")
def test_it_is_small_and_as_accurate_as_the_float_file(
    trained: nn.Module,
    digits: DataSplits,
    float_file: Path,
    images: torch.Tensor,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = float_file.read_bytes()
    out = tmp_path / "deep" / "a-int8.onnx"
    assert 0 < quantise_onnx(float_file, images, out) < 0.1
    assert capfd.readouterr() == ("", "")
    assert float_file.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]
    assert out.stat().st_size < 0.3 * len(before)
    exact = accuracy(trained, digits, digits.reward)
    assert onnx_accuracy(float_file, digits, digits.reward) == exact
    assert abs(onnx_accuracy(out, digits, digits.reward) - exact) < 0.01


def test_weights_are_int8_with_one_scale_for_each_filter_and_the_batch_size_is_free(
    trained: nn.Module, float_file: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    quantise_onnx(float_file, images, tmp_path / "a.onnx")
    proto = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(proto)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    scales = {node.input[0]: tensors[node.input[1]] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    kernels = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 4}
    assert len(kernels) == sum(isinstance(module, nn.Conv2d) for module in trained.modules())
    for name, kernel in kernels.items():
        assert kernel.dtype == "int8"
        assert scales[name].shape == kernel.shape[:1]
        assert abs(kernel).max() <= 64, "7 bits, so that sums of two products do not overflow 16 bits"
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for count in (1, 3):
        assert session.run(None, {"images": images[:count].numpy()})[0].shape == (count, 10)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"images": torch.zeros(0, 1, 8, 8)}, r"\(0, 1, 8, 8\)"),
        ({"images": torch.zeros(1, 8, 8)}, r"\(1, 8, 8\)"),
        ({"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, "uint8"),
        ({"images": torch.full((2, 1, 8, 8), torch.nan)}, "finite"),
        ({"images": torch.zeros(2, 3, 8, 8)}, r"\(3, 8, 8\)"),
        ({"out": "SAME"}, "out"),
    ],
)
def test_wrong_arguments_are_named(
    float_file: Path, images: torch.Tensor, tmp_path: Path, wrong: dict[str, Any], named: str
) -> None:
    arguments = {"file": float_file, "images": images, "out": tmp_path / "a.onnx", **wrong}
    if arguments["out"] == "SAME":
        arguments["out"] = float_file.parent / "x" / ".." / "a.onnx"
    with pytest.raises(ValueError, match=named) as error:
        quantise_onnx(**arguments)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_quantised(
    float_file: Path, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx"):
        quantise_onnx(tmp_path / "missing.onnx", images, tmp_path / "a.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"broken\.onnx"):
        quantise_onnx(tmp_path / "broken.onnx", images, tmp_path / "a.onnx")
    monkeypatch.setattr("onnxruntime.quantization.quantize_static", lambda *_, **__: 1 / 0)
    with pytest.raises(ExportError, match="ZeroDivisionError"):
        quantise_onnx(float_file, images, tmp_path / "a.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["broken.onnx"]


def test_the_preparation_is_optional(
    float_file: Path, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.quantization.shape_inference.quant_pre_process", lambda *_: 1 / 0)
    assert quantise_onnx(float_file, images[:20], tmp_path / "a.onnx") < 0.1


def test_a_file_that_is_another_network_is_refused(
    float_file: Path, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "INT8_TOLERANCE", 1e-6)
    with pytest.raises(ExportError, match="of the largest output"):
        quantise_onnx(float_file, images[:20], tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str, float_file: Path, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*\[export\]"):
        quantise_onnx(float_file, images, tmp_path / "a.onnx")


def test_an_old_package_is_named(
    float_file: Path, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.0")
    with pytest.raises(ImportError, match=r"onnxruntime.*1\.9\.0"):
        quantise_onnx(float_file, images, tmp_path / "a.onnx")


def test_names() -> None:
    assert int8_file(Path("runs/small.v2.onnx")) == Path("runs/small.v2-int8.onnx")
