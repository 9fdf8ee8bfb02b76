"""Export a network as ONNX or as a torch.export program; the file is loaded again and compared with the network.

Letters: N images, B images in a batch, C channels, H and W pixels.
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
from torch.nn.parallel import DistributedDataParallel

from ..common.command import require_packages
from ..common.files import replacing
from ..common.onnx_session import PACKAGES, open_session
from ..pruning.copies import uncompiled

ONNX_TOLERANCE = 1e-4
TORCH_TOLERANCE = 1e-6
"""Allowed difference between outputs, as a fraction of the largest output."""
ONNX_LIMIT = 2**31 - 1
"""Bytes of one ONNX file; protobuf does not allow more."""


class ExportError(ValueError):
    """The network cannot be exported, or the exported network has other outputs."""


@torch.inference_mode(False)  # tensors of inference mode cannot be traced
def to_onnx(model: nn.Module, path: str | Path, images: torch.Tensor) -> float:
    """Write a network as one ONNX file in eval mode and float32, for any batch size.

    The file has the input `images` [B, C, H, W] and the output `logits`. It is only written if onnxruntime and torch
    agree on all images together and on a single one.

    Args:
        model: The network; it is not changed.
        path: The file to write; missing parent folders are created.
        images: At least two normalised images [N, C, H, W] of the network's data.

    Returns:
        The largest difference between outputs, as a fraction of the largest output.

    Raises:
        ExportError: The network cannot be exported, or outputs differ by more than 1e-4.
        ImportError: The packages of the extra `export` are not installed.
    """
    require_packages(PACKAGES, "ONNX", "export")
    network, images = _prepared(model, images, torch.float32)
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > ONNX_LIMIT:
        raise ExportError(f"the weights take {size} bytes, an ONNX file at most {ONNX_LIMIT}; use to_torch_export")
    with exporting("ONNX"):
        program = torch.onnx.export(
            network,
            (images[:2],),
            dynamo=True,
            dynamic_shapes=_dynamic_batch(),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.initializer, *proto.graph.value_info):
        part.ClearField("metadata_props")  # stack traces with local paths, which are half of a small file
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        return largest_difference(network, open_session(temporary), images, ONNX_TOLERANCE)


@torch.inference_mode(False)
def to_torch_export(model: nn.Module, path: str | Path, images: torch.Tensor) -> float:
    """Write a network as a torch.export program (.pt2) in eval mode and in the precision of its weights.

    `torch.export.load(path).module()` returns the network, without any class of this package. The file is only written
    if it agrees with the network on all images together and on a single one.

    Args:
        model: The network; it is not changed.
        path: The file to write; missing parent folders are created.
        images: At least two normalised images [N, C, H, W] of the network's data.

    Returns:
        The largest difference between outputs, as a fraction of the largest output.

    Raises:
        ExportError: The network cannot be exported, or outputs differ by more than 1e-6.
    """
    network, images = _prepared(model, images, None)
    buffer = io.BytesIO()
    with exporting("torch.export"):
        program = torch.export.export(network, (images[:2],), dynamic_shapes=_dynamic_batch(), strict=False)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # contains local paths
        torch.export.save(program, buffer)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(buffer.getvalue())
        with exporting("torch.export"):
            loaded = torch.export.load(temporary).module()
        return largest_difference(network, loaded, images, TORCH_TOLERANCE)


def _prepared(model: nn.Module, images: torch.Tensor, dtype: torch.dtype | None) -> tuple[nn.Module, torch.Tensor]:
    """Return a copy of the network on the CPU in eval mode, and images as contiguous tensors of its precision."""
    if images.ndim != 4 or len(images) < 2:
        raise ExportError(f"images must be [N, C, H, W] with at least two images, got {tuple(images.shape)}")
    while isinstance(model, (nn.DataParallel, DistributedDataParallel)):  # exporters do not accept them
        model = uncompiled(model.module)
    network = copy.deepcopy(model).cpu().eval().to(memory_format=torch.contiguous_format)
    if dtype is not None:
        network.to(dtype)
    dtypes = [parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()]
    images = images.detach().to("cpu", dtypes[0] if dtypes else torch.float32, copy=True)
    return network, images.contiguous(memory_format=torch.contiguous_format)


def _dynamic_batch() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("batch")},)


@contextlib.contextmanager
def exporting(
    exporter: str, remedy: str = "its forward method must use only plain tensor operations that work for any batch size"
) -> Iterator[None]:
    """Disable gradients and all output in the block, and turn errors into an ExportError of one line.

    Args:
        exporter: What runs in the block, for the message.
        remedy: What the network must be like, for the message.
    """
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
        except Exception as error:  # exporters raise many types
            line = next((line for line in str(error).splitlines() if line.strip()), "")
            raise ExportError(
                f"{exporter} cannot take this network ({type(error).__name__}: {line}); {remedy}"
            ) from error
        finally:
            logging.disable(disabled)


def largest_difference(
    network: Callable[[torch.Tensor], torch.Tensor],
    exported: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    tolerance: float,
) -> float:
    """Return the largest relative difference between outputs, for all images together and for a single one.

    Raises:
        ExportError: It is above `tolerance`, or one of the two fails.
    """
    largest = 0.0
    for batch in (images, images[:1]):
        try:
            with torch.no_grad():
                expected, found = network(batch), exported(batch)
        except Exception as error:  # network and runtime raise many types
            line = str(error).partition("\n")[0]
            raise ExportError(
                f"the network or the exported network fails at batch size {len(batch)}: {line}"
            ) from error
        if not isinstance(expected, torch.Tensor):
            raise ExportError(f"the network must return one tensor, it returns a {type(expected).__name__}; wrap it")
        if found.shape != expected.shape:
            raise ExportError(
                f"at batch size {len(batch)} the exported network returns {tuple(found.shape)}, the network "
                f"{tuple(expected.shape)}"
            )
        scale = max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
        difference = float((found - expected).abs().max()) / scale
        if not difference <= tolerance:  # also true for NaN
            raise ExportError(
                f"the exported network differs from the network by {difference:.2g} of the largest output at batch "
                f"size {len(batch)}; {tolerance:g} is allowed"
            )
        largest = max(largest, difference)
    return largest
