"""Check that copies of a network compute what the network computes, and that none of them can change it."""

from __future__ import annotations

import dis
import functools
import types
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .copies import CONTENTS, FORWARD_HOOKS, HOOKS, is_compiled
from .errors import PruningError


def check_suitable(model: nn.Module) -> None:
    """Check that a network can be copied faithfully, and warn of forward hooks, which copies leave out.

    Raises:
        PruningError: A layer cannot be copied, run or measured; the message names it.
    """
    if not isinstance(model, nn.Module):
        raise PruningError(f"the model must be a network (nn.Module), got {type(model).__name__}")
    layers = {path or "the network": module for path, module in model.named_modules() if not is_compiled(module)}
    for path, module in layers.items():
        if reason := _obstacle(module):
            raise PruningError(f"{path} ({type(module).__name__}) {reason}")
    originals = {id(module) for module in layers.values()} | {id(tensor) for tensor in model.parameters()}
    originals |= {id(tensor) for tensor in model.buffers()}
    for path, module in layers.items():
        values = {name: value for name, value in vars(module).items() if name not in (*CONTENTS, *HOOKS)}
        for name, value in [*values.items(), ("forward", type(module).forward)]:
            if _reaches(value, originals, set(), shared=False):
                raise PruningError(
                    f"{path} ({type(module).__name__}): {name} holds a function or reference that reaches layers of "
                    "this network, so a copy would call and change the original's layers; make it a method that uses "
                    "self"
                )
    if hooked := [path for path, module in layers.items() if any(vars(module).get(name) for name in FORWARD_HOOKS)]:
        warnings.warn(
            f"forward hooks of {', '.join(hooked)} are not copied, so pruned networks run without them; if they change "
            "inputs or outputs, move what they do into forward",
            stacklevel=4,
        )


def _obstacle(module: nn.Module) -> str | None:
    """Why a module cannot be handled, as the end of a sentence; None if it can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is scripted or traced by torch.jit; prune the network before that"
    if {"train", "eval"} & vars(module).keys():
        return "has its own train or eval method, as programs of torch.export have; prune the network before its export"
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


def _reaches(value: Any, originals: set[int], seen: set[int], shared: bool) -> bool:
    """Whether an object that deepcopy shares, such as a function, leads to a module or tensor of the original.

    Args:
        value: The object from which to search.
        originals: Ids of the modules and tensors.
        seen: Ids of the objects that were searched.
        shared: Whether the way to the object leads through one that deepcopy shares.
    """
    if id(value) in originals:
        return shared
    if id(value) in seen or isinstance(value, (torch.Tensor, type, types.ModuleType)):
        return False
    seen.add(id(value))
    if isinstance(value, (types.FunctionType, weakref.ref)):
        shared = True
    return any(_reaches(part, originals, seen, shared) for part in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    """The objects that an object refers to."""
    if isinstance(value, types.FunctionType):
        if value.__module__ and value.__module__.split(".")[0] in ("torch", "torchvision", "numpy"):
            return
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # the cell is empty
                continue
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        yield from vars(value).values()
        yield from (value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, weakref.ref):
        yield value()
    elif isinstance(value, dict):
        yield from (*value, *value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif hasattr(value, "__dict__"):
        yield from vars(value).values()


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names that a function's code reads, and those that the functions inside it read."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
