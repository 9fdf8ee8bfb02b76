"""Check that copies of a network compute what the network computes, and that none of them can change it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..common.device import seeded
from ..common.failure import described
from .copies import FORWARD_HOOKS, HOOKS, is_compiled
from .errors import PruningError
from .forward import output_tensors
from .groups import named


def check_suitable(model: nn.Module) -> None:
    """Check that a network can be copied faithfully.

    Raises:
        PruningError: A layer cannot be copied, run or measured; the message names it.
    """
    if not isinstance(model, nn.Module):
        raise PruningError(f"the model must be a network (nn.Module), got {type(model).__name__}")
    layers = {named(path): module for path, module in model.named_modules() if not is_compiled(module)}
    for path, module in layers.items():
        if reason := _obstacle(module):
            raise PruningError(f"{path} ({type(module).__name__}) {reason}")


def check_hooks(model: nn.Module, network: nn.Module, inputs: list[torch.Tensor]) -> None:
    """Check that a network computes the same without its forward hooks, which copies leave out.

    Args:
        model: The network.
        network: A copy of it in eval mode. The hooks run once, on this copy.
        inputs: Inputs of the network.

    Raises:
        PruningError: A hook changes an input or output, or fails; the message names its layer.
    """
    hooked = {path: module for path, module in model.named_modules() if any(map(vars(module).get, FORWARD_HOOKS))}
    if not hooked:
        return
    try:
        plain = _outputs(network, inputs)
    except Exception as error:
        raise PruningError(
            f"the network does not run without the forward hooks of {', '.join(map(named, hooked))}, which copies "
            f"leave out ({described(error)}); move what they do into forward"
        ) from error
    changing = []
    for path, module in hooked.items():
        copied = vars(network.get_submodule(".".join(part for part in path.split(".") if part != "_orig_mod")))
        before = {name: copied[name] for name in HOOKS}
        copied.update({name: vars(module)[name].copy() for name in HOOKS})
        try:
            outputs = _outputs(network, inputs)
        except Exception as error:
            raise PruningError(f"a forward hook of {named(path)} fails on the example ({described(error)})") from error
        finally:
            copied.update(before)
        if len(outputs) != len(plain) or not all(map(_equal, outputs, plain)):
            changing.append(named(path))
    if changing:
        raise PruningError(
            f"forward hooks of {', '.join(changing)} change what the network computes, and copies leave them out; move "
            "what they do into forward"
        )


def _outputs(network: nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode(), seeded(inputs[0].device, 0):  # the same random numbers in every call
        return output_tensors(network(*(images.clone() for images in inputs)))


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)


def _obstacle(module: nn.Module) -> str | None:
    """Why a module cannot be handled, as the end of a sentence; None if it can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is scripted or traced by torch.jit; prune the network before that"
    if {"train", "eval"} & vars(module).keys():
        return "has its own train or eval method, as programs of torch.export have; prune the network before its export"
    if {"FakeQuantizeBase", "ObserverBase"} & {kind.__name__ for kind in type(module).__mro__}:
        return "was added for quantisation; prune the network before it is prepared for that"
    if "forward" in vars(module):
        return "has a forward of its own instead of its class's; define it in a subclass"
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if is_lazy(tensor):
            return f"is lazy: its {name} has no shape yet; run the network once before it is pruned"
        if tensor.is_meta:
            return f"has its {name} on the device 'meta', without values; load the weights first"
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return (
                f"has values in its {name} that are not finite (NaN or infinite); use weights of a successful training"
            )
    return None
