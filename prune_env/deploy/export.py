"""A network as ONNX, and as a program of torch.export: written whole, loaded again, and compared with the original.

Letters: N images, B of them in a batch, C channels, H and W pixels.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from ..common import onnx_session as onnx_runtime
from ..common.files import replacing

ONNX_TOLERANCE = 1e-4
TORCH_TOLERANCE = 1e-6
"""How far outputs may differ, as a fraction of the largest."""
ONNX_LIMIT = 2**31 - 1
"""Bytes of one ONNX file; protobuf can hold no more."""


class ExportError(ValueError):
    """The network cannot be exported, or what was exported computes something else."""


@torch.inference_mode(False)  # a caller's inference mode would make tensors that cannot be traced
def to_onnx(model: nn.Module, path: str | Path, images: torch.Tensor) -> float:
    """Writes the network as one ONNX file, in eval mode and float32: input `images` [B, C, H, W], output `logits`.

    images  N >= 2 normalised images [N, C, H, W] of the kind that the network is for: onnxruntime must agree with
            torch on all of them at once and on one alone
    Returns the largest difference of outputs, as a fraction of the largest output.
    Raises ExportError, with the difference where it is above 1e-4; no file is written then. Raises ImportError without
    the extra `export`. The model and the global state stay as they are.
    """
    onnx_runtime.require()
    network, images = _prepared(model, images, torch.float32)
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > ONNX_LIMIT:
        raise ExportError(f"the weights take {size} bytes, an ONNX file holds {ONNX_LIMIT}; use to_torch_export")
    with _exporting("ONNX"):
        program = torch.onnx.export(
            network, (images[:2],), dynamo=True, dynamic_shapes=_dynamic_batch(), input_names=["images"],
            output_names=["logits"], verbose=False,
        )  # fmt: skip
        assert program is not None
        proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.initializer, *proto.graph.value_info):
        part.ClearField("metadata_props")  # stack traces with paths of this machine, half of a small file
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        return _compared(network, onnx_runtime.runner(temporary), images, ONNX_TOLERANCE)


@torch.inference_mode(False)
def to_torch_export(model: nn.Module, path: str | Path, images: torch.Tensor) -> float:
    """Writes the network as a program of torch.export (.pt2), in eval mode and the dtype of its weights.

    `torch.export.load(path).module()` has it back, without any class of this package. Arguments, result and errors
    are those of `to_onnx`; the tolerance is 1e-6.
    """
    network, images = _prepared(model, images, None)
    buffer = io.BytesIO()
    with _exporting("torch.export"):
        program = torch.export.export(network, (images[:2],), dynamic_shapes=_dynamic_batch(), strict=False)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        torch.export.save(program, buffer)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(buffer.getvalue())
        with _exporting("torch.export"):
            loaded = torch.export.load(temporary).module()
        return _compared(network, loaded, images, TORCH_TOLERANCE)


def _prepared(model: nn.Module, images: torch.Tensor, dtype: torch.dtype | None) -> tuple[nn.Module, torch.Tensor]:
    """A copy of the network on the CPU in eval mode, and images as contiguous tensors of its dtype."""
    if images.ndim != 4 or len(images) < 2:
        raise ExportError(f"images must be [N, C, H, W] with at least two images, got {tuple(images.shape)}")
    network = copy.deepcopy(model).cpu().eval().to(memory_format=torch.contiguous_format)
    if dtype is not None:
        network.to(dtype)
    dtypes = [parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()]
    images = images.detach().to("cpu", dtypes[0] if dtypes else torch.float32, copy=True)
    return network, images.contiguous(memory_format=torch.contiguous_format)


def _dynamic_batch() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("batch")},)


@contextlib.contextmanager
def _exporting(what: str) -> Iterator[None]:
    """No gradients and no word on the terminal within the block; errors become ExportError, in one line."""
    disabled = logging.root.manager.disable
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        except Exception as error:  # exporters raise anything
            line = next((line for line in str(error).splitlines() if line.strip()), "")
            raise ExportError(
                f"{what} cannot take this network ({type(error).__name__}: {line}); its forward must be plain tensor "
                "operations that hold for any batch size"
            ) from error
        finally:
            logging.disable(disabled)


def _compared(
    network: nn.Module, exported: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, tolerance: float
) -> float:
    """The largest relative difference of outputs over both batch sizes. Raises ExportError above the tolerance."""
    worst = 0.0
    for batch in (images, images[:1]):
        try:
            with torch.no_grad():
                expected, found = network(batch), exported(batch)
        except Exception as error:  # whatever the network or the runtime raises
            line = str(error).partition("\n")[0]
            raise ExportError(f"the network, or what was exported, fails at batch size {len(batch)}: {line}") from error
        if not isinstance(expected, torch.Tensor):
            raise ExportError(f"the network must return one tensor, it returns a {type(expected).__name__}; wrap it")
        if found.shape != expected.shape:
            raise ExportError(
                f"the exported network gives {tuple(found.shape)} at batch size {len(batch)}, the network gives "
                f"{tuple(expected.shape)}"
            )
        scale = max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
        difference = float((found - expected).abs().max()) / scale
        if not difference <= tolerance:  # not a number, too
            raise ExportError(
                f"the exported network differs from the network by {difference:.2g} of the largest output at batch "
                f"size {len(batch)}; {tolerance:g} is allowed"
            )
        worst = max(worst, difference)
    return worst
