"""Quantise an ONNX file to int8: weights and activations in 8 bits, with ranges measured on calibration images.

Letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..common.command import require_packages
from ..common.files import replacing
from ..common.onnx_session import open_session
from ..data import DataSplits
from .export import ExportError, exporting, largest_difference

OLDEST = (1, 20)
"""The oldest release of onnxruntime that the extra `export` allows."""
CALIBRATION_IMAGES = 256
"""Number of images that `calibration_images` returns."""
CHECK_IMAGES = 32
"""Number of calibration images on which the two files are compared."""
INT8_TOLERANCE = 1.0
"""Allowed difference between outputs, as a fraction of the largest output. Rounding costs a few percent; beyond this
limit the file is not the network."""


def quantise_onnx(file: str | Path, images: torch.Tensor, out: str | Path) -> float:
    """Write an ONNX file with weights and activations in int8 instead of float32.

    The file is in QDQ format. Every filter has a scale of its own, and the range of an activation is from its smallest
    to its largest value on the images. Weights use 7 of their 8 bits: processors without VNNI instructions add products
    in 16 bits, which would overflow, and the accuracy would depend on the processor. Inputs and outputs stay float32.

    Measure the accuracy of the result: the returned difference says little about it.

    Args:
        file: The file that `to_onnx` wrote; it is not changed.
        images: Normalised images [N, C, H, W] of the network's training data, never of the test set; a few hundred.
        out: The file to write; missing parent folders are created.

    Returns:
        The largest difference between outputs of the two files on 32 images, as a fraction of the largest output.

    Raises:
        ExportError: The file cannot be quantised, or the outputs have nothing in common.
        FileNotFoundError: There is no such file.
        ImportError: onnxruntime is not installed or too old, or onnx is not installed.
        ValueError: An argument is wrong; the message names it.

    Example:
        >>> to_onnx(network, "small.onnx", images)
        >>> quantise_onnx("small.onnx", data.normalise(data.calibration.balanced(256).images), "small-int8.onnx")
    """
    require_quantiser()
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    file, out = Path(file), Path(out)
    if images.ndim != 4 or not len(images) or not images.is_floating_point() or not images.isfinite().all():
        raise ValueError(
            f"images must be finite normalised images [N, C, H, W], at least one, got {tuple(images.shape)} of "
            f"{images.dtype}"
        )
    if out.resolve() == file.resolve():
        raise ValueError(f"out must be another file than {file}, which is still needed to compare the outputs")
    images = images.detach().to("cpu", torch.float32).contiguous(memory_format=torch.contiguous_format)
    network = open_session(file)
    try:
        network(images[:1])
    except Exception as error:  # onnxruntime has a separate class for every kind of failure
        line = str(error).partition("\n")[0]
        raise ValueError(f"{file} does not take images of shape {tuple(images.shape[1:])} (C, H, W): {line}") from error
    with replacing(out) as temporary, TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        try:
            with exporting("onnxruntime"):  # fuses layers that are quantised together
                quant_pre_process(str(file), str(prepared))
        except ExportError:  # the preparation is optional, and its shape inference does not know every operator
            prepared = file
        with exporting("onnxruntime's quantisation", "its operators must have fixed shapes except for the batch size"):
            quantization.quantize_static(
                str(prepared),
                str(temporary),
                _Reader(images),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
        return largest_difference(network, open_session(temporary), images[:CHECK_IMAGES], INT8_TOLERANCE)


def require_quantiser() -> None:
    """Check that the packages of `quantise_onnx` are installed.

    Raises:
        ImportError: A package is missing or too old; the message names it and the command that installs it.
    """
    require_packages(("onnx", "onnxruntime"), "int8", "export")
    import onnxruntime

    if tuple(int(number) for number in onnxruntime.__version__.split(".")[:2]) < OLDEST:
        raise ImportError(
            f"int8 needs onnxruntime {'.'.join(map(str, OLDEST))} or later, {onnxruntime.__version__} is installed: "
            'pip install -U -e ".[export]" in the clone'
        )


def calibration_images(data: DataSplits) -> torch.Tensor:
    """Return images of the calibration split as network input, float32 [N, C, H, W], evenly over the classes."""
    return data.normalise(data.calibration.balanced(CALIBRATION_IMAGES).images)


def int8_file(file: Path) -> Path:
    """Return the path of the int8 file that belongs to an ONNX file: small.onnx -> small-int8.onnx."""
    return file.with_name(f"{file.stem}-int8.onnx")


class _Reader:
    """Hands one image after the other to onnxruntime."""

    def __init__(self, images: torch.Tensor) -> None:
        self._images = iter(images.split(1))

    def get_next(self) -> dict[str, object] | None:
        image = next(self._images, None)
        return None if image is None else {"images": image.numpy()}
