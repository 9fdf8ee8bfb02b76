"""The copy of a network that is trained, the precision it trains in, and a fingerprint of how it learns."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..common.device import DTYPES, Precision, failing_layer, fast_dtype, seeded
from ..common.memory_format import channels_last, in_layout, memory_format
from ..common.warn import warn
from ..scoring.metric import eval_mode
from .step import first_tensor


def trainable_copy(
    model: nn.Module, device: torch.device, layout: torch.memory_format = torch.channels_last
) -> nn.Module:
    """Return a copy of a network, in float32 on a device.

    A network that is frozen completely, as for inference, is unfrozen in the copy. `restore_frozen` freezes it again.

    Args:
        model: The network.
        device: Device of the copy.
        layout: Memory format of the copy.

    Raises:
        ValueError: The network has no parameters.
    """
    copied = channels_last(in_float32(copy.deepcopy(model)).to(device), layout)
    if not any(True for _ in copied.parameters()):
        raise ValueError(f"{type(model).__name__} has no parameters, so there is nothing to train")
    if not any(parameter.requires_grad for parameter in copied.parameters()):
        copied.requires_grad_(True)
    return copied


def in_float32(network: nn.Module) -> nn.Module:
    """Convert a network to float32, in place, and return it; one that mixes float64 with other types stays as it is."""
    kinds = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    return network if torch.float64 in kinds and len(kinds) > 1 else network.float()


def not_finite(network: nn.Module) -> list[str]:
    """Return the names of the parameters and buffers that hold infinities or NaN; a mask may do so on purpose."""
    tensors = ((name, tensor) for name, tensor in network.state_dict().items() if isinstance(tensor, torch.Tensor))
    return [name for name, tensor in tensors if not tensor.isfinite().all()]


def restore_frozen(trained: nn.Module, original: nn.Module) -> None:
    """Freeze the parameters of a trained copy that are frozen in the original, in place, and drop gradients."""
    trained.zero_grad(set_to_none=True)
    for parameter, given in zip(trained.parameters(), original.parameters(), strict=True):
        parameter.requires_grad_(given.requires_grad)


def training_dtype(model: nn.Module, example_input: torch.Tensor, precision: Precision = "auto") -> torch.dtype:
    """Return the type that autocast should compute in when this network trains.

    With precision 'auto' it is the fast precision of the device, except for networks that do not run in it, which a
    warning names, and except where bfloat16 gradients are wrong: oneDNN's bfloat16 gradient of a convolution with a
    stride contains uninitialised memory where maps have a single pixel and the kernel is wider (torch 2.14). It is
    noise in every run, and sometimes not a number.

    Args:
        model: The network.
        example_input: Normalised images [B, C, H, W] on the device of the network, in its memory format.
        precision: auto, bf16 or fp32.

    Raises:
        ValueError: `precision` is 'bf16', and the network cannot be trained in bfloat16.
    """
    dtype = fast_dtype(example_input.device) if precision == "auto" else DTYPES[precision]
    if dtype == torch.float32:
        return dtype
    wrong = _strides_over_single_pixels(model, example_input)
    reason = "gradients of convolutions that stride over single pixels are wrong" if wrong else ""
    if not wrong and (error := _error(model, example_input, dtype)) is not None:
        if _error(model, example_input, torch.float32) is not None:
            return dtype  # the precision is not the cause; training raises the error
        with torch.autocast(example_input.device.type, dtype):
            where = failing_layer(copy.deepcopy(model).train(), example_input)
        reason = f"the network cannot be trained{f', at {where}' if where else ''}: {str(error).partition(chr(10))[0]}"
    if reason and precision == "bf16":
        raise ValueError(f"precision='bf16', but in bfloat16 {reason}; set precision='auto' or 'fp32'")
    if reason and not wrong:
        warn(
            f"in bfloat16 {reason}. It is trained in float32, which takes longer; precision='fp32' does so without "
            "this warning"
        )
    return torch.float32 if reason else dtype


def learning_fingerprint(model: nn.Module, example_input: torch.Tensor) -> str:
    """Return a hash of how a network learns, besides its weights: the frozen layers, and its output in training mode.

    Dropout, for example, changes that output. The output is rounded to three digits, because the order of sums depends
    on the number of threads.

    Args:
        model: The network.
        example_input: Normalised images [B, C, H, W] on the CPU.
    """
    layout = memory_format(model, example_input)
    network = trainable_copy(model, torch.device("cpu"), layout).train()
    with torch.no_grad(), seeded("cpu", 0):
        output = first_tensor(network(in_layout(example_input, layout))).flatten()
    rounded = (1000 * output / output.abs().max().clamp(min=1e-12)).round().tolist()
    flags = [parameter.requires_grad for parameter in network.parameters()]
    return hashlib.blake2b(f"{flags} {rounded}".encode(), digest_size=16).hexdigest()


def _error(model: nn.Module, example_input: torch.Tensor, dtype: torch.dtype) -> Exception | None:
    """Return the error that a training step in a precision raises, None if there is none."""
    network = copy.deepcopy(model).train()
    try:
        with (
            seeded(example_input.device, 0),
            torch.autocast(example_input.device.type, dtype, enabled=dtype != torch.float32),
        ):
            value = first_tensor(network(example_input)).float().sum()
        value.backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a forward pass may raise anything
        return error
    return None


def _strides_over_single_pixels(model: nn.Module, example_input: torch.Tensor) -> bool:
    """Return whether a convolution with a stride and a kernel wider than 1 gets maps of a single pixel."""
    found = []

    def check(module: _ConvNd, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs and inputs[0].shape[2:].numel() == 1 and max(module.kernel_size) > 1 and max(module.stride) > 1:
            found.append(module)

    handles = [m.register_forward_pre_hook(check) for m in model.modules() if isinstance(m, _ConvNd)]
    try:
        with eval_mode(model), torch.inference_mode():
            model(example_input)
    finally:
        for handle in handles:
            handle.remove()
    return bool(found)
