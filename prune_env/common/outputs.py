"""Networks with several outputs: choose the one that is trained, measured and exported.

`one_output` gives a network whose call returns one tensor, so everything that takes a network takes it: training,
pruning, distillation, metrics and export. It is the same network otherwise: the same layers under the same names, and
the same state. `all_outputs` gives the network with its own outputs back, also after it was pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.fx import GraphModule, Proxy

Chosen = str | int | Callable[[Any], torch.Tensor]
"""A key of a dict, a position in a tuple or list, or a function from what the network returns to one tensor."""


class OutputError(ValueError):
    """The chosen output does not exist, or is not a tensor."""


def one_output(network: nn.Module, output: Chosen) -> nn.Module:
    """Return a network that shares all layers with another one, and returns one of its outputs.

    Args:
        network: A network that takes a batch of images and returns a dict, a tuple or a list. Where it returns a tensor
            (some networks return more in training mode only), that tensor is the output.
        output: A key such as 'out', a position, or a function that makes one tensor of what the network returns.

    Returns:
        The network. `all_outputs` is its inverse.

    Raises:
        TypeError: `network` is no network, or is compiled or scripted, or has a forward pass of its own, or `output` is
            of another type.

    Example:
        >>> model = one_output(torchvision.models.segmentation.fcn_resnet50(num_classes=21), "out")
        >>> model(images).shape  # [B, 21, H, W]
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"the network must be an nn.Module, got {type(network).__name__}")
    if isinstance(network, torch.jit.ScriptModule) or hasattr(network, "_orig_mod"):
        raise TypeError(f"choose the output before the network is compiled or scripted ({type(network).__name__})")
    if "forward" in vars(network) or isinstance(network, GraphModule):
        raise TypeError(
            f"the forward pass of this {type(network).__name__} is not that of its class; wrap the network in a module "
            "of your own that returns one output"
        )
    if isinstance(output, bool) or not (isinstance(output, (str, int)) or callable(output)):
        raise TypeError(f"output must be a key, a position or a function, got {output!r}")
    network = all_outputs(network)
    kind = _one_output_class(type(network))  # type: ignore[arg-type]  # a class can be hashed
    return _with_class(network, kind, _chosen_output=output)


def all_outputs(network: nn.Module) -> nn.Module:
    """Return a network with its own outputs, which shares all layers; a network without a chosen output itself."""
    if not isinstance(network, _OneOutput):
        return network
    plain = _with_class(cast(nn.Module, network), type(network).__mro__[2])
    del plain._chosen_output
    return plain


def described_output(output: Any) -> str:
    """Return what a network returned, in words: its type, and the keys or the number of its outputs."""
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(repr, output)) or 'nothing'}"
    return f"a {type(output).__name__}" + (f" of {len(output)}" if isinstance(output, (tuple, list)) else "")


class _OneOutput:
    """Goes before a network's class: its forward pass returns one output only."""

    _chosen_output: Chosen

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # not *args, which symbolic tracing does not take
        return _chosen(super().forward(images), self._chosen_output)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        _, _, *state = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return _empty, (type(self).__mro__[2],), *state


@cache
def _one_output_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class of networks of a kind with one output. It has the name of the kind, as records of files show."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return cast(type[nn.Module], type(kind.__name__, (_OneOutput, kind), names))


def _empty(kind: type[nn.Module]) -> nn.Module:
    return object.__new__(_one_output_class(kind))  # type: ignore[arg-type]  # a class can be hashed


def _with_class(network: nn.Module, kind: type[nn.Module], **more: Any) -> nn.Module:
    """Return a network of another class with the same attributes, and more."""
    made = object.__new__(kind)
    vars(made).update(vars(network), **more)
    return made


def _chosen(found: Any, output: Chosen) -> torch.Tensor:
    """Return the chosen output.

    Raises:
        OutputError: There is none, or it is no tensor.
    """
    if not isinstance(output, (str, int)):
        tensor = output(found)
    elif not isinstance(found, (Mapping, tuple, list)):
        tensor = found
    else:
        try:
            tensor = found[output]  # type: ignore[index]  # a wrong key is an error below
        except (LookupError, TypeError) as error:
            raise OutputError(f"the network has no output {output!r}; it returns {described_output(found)}") from error
    if not isinstance(tensor, (torch.Tensor, Proxy)):
        raise OutputError(f"output {output!r} must be a tensor, it is {described_output(tensor)}; choose a part of it")
    return tensor
