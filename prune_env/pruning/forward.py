"""Inputs and outputs of a forward pass, and the progress bar of work that consists of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from ..common.expect import expect
from .errors import PruningError

Example = torch.Tensor | Sequence[torch.Tensor]
"""Example input of a network, float [B, C, H, W]; a sequence of tensors for a network with several inputs."""

progress_bar = partial(tqdm, delay=5, miniters=0, leave=False)
"""Bar on stderr that appears after five seconds and is removed at the end; `update(0)` updates its clock."""


def inputs_for(network: nn.Module, example: Example) -> list[torch.Tensor]:
    """Return the example's tensors on the network's device, those of floating-point type in its precision.

    Raises:
        TypeError: The example is neither a tensor nor a sequence of tensors.
    """
    tensors: list[Any] = list(example) if isinstance(example, (list, tuple)) and example else [example]
    for tensor in tensors:
        expect(tensor, torch.Tensor, "the example input must be a tensor, or a list or tuple of one or more tensors")
    first = next((tensor for tensor in network.parameters() if tensor.is_floating_point()), tensors[0])
    return [t.detach().to(first.device, first.dtype if t.is_floating_point() else t.dtype) for t in tensors]


def output_tensors(output: Any) -> list[torch.Tensor]:
    """Return all tensors in a network's output.

    Raises:
        PruningError: The output has no tensor, or an object of a type that cannot be searched for tensors.
    """
    leaves = tree_leaves(output)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    unknown = [leaf for leaf in leaves if not isinstance(leaf, (torch.Tensor, int, float, str, type(None)))]
    if unknown or not tensors:
        raise PruningError(
            f"the network returns {type(unknown[0] if unknown else output).__name__}, which contains no tensors that "
            "can be found; return a tensor, or tensors in tuples, lists and dicts"
        )
    return tensors


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the first input of a module's call, which may be a keyword argument."""
    tensor: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
    return tensor


def with_first_input(
    tensor: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a module's call with another first input, as a forward pre-hook returns them."""
    return ((tensor, *args[1:]), kwargs) if args else ((), {**kwargs, next(iter(kwargs)): tensor})
