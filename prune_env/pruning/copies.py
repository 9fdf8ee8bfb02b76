"""Copies of a network that take other tensors in place of its own, and no hooks.

`copy.deepcopy` of every module is half of what building a small network would cost; modules of the ordinary kind are
copied attribute by attribute instead. What deepcopy does, with two exceptions: buffers that are views of one another
come apart, and a second name for a module's own dictionary of children becomes a dictionary of its own.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
HELD = ("_parameters", "_buffers", "_modules")
COMPILED = "_compiled_call_impl"
"""What `Module.compile` leaves: code for the sizes of the original, which `Module.__getstate__` leaves out, too."""
UNCHANGING = frozenset((int, float, complex, bool, str, bytes, type(None), torch.Size, torch.dtype, torch.device))


class PruningError(ValueError):
    """The network cannot be copied, traced or pruned."""


@torch.inference_mode(False)
def twin(model: nn.Module) -> nn.Module:
    """A copy without hooks that shares the parameters' storage and owns its buffers: to trace, hook and look at."""
    model = uncompiled(model)
    return copied(model, {}, share=True)[id(model)]


def uncompiled(model: nn.Module) -> nn.Module:
    """What torch.compile was given, if it was: compiled code knows the sizes that it was compiled for."""
    original = getattr(model, "_orig_mod", model)
    assert isinstance(original, nn.Module)
    return original


def copied(model: nn.Module, tensors: Mapping[int, torch.Tensor], share: bool) -> dict[int, nn.Module]:
    """A deep copy in which `tensors` (by the original's id) take the originals' place: id of a module -> its copy.

    No tensor is copied in vain: parameters that are not replaced are cloned, or share their storage. Buffers are always
    the copy's own, because a forward pass may write to them.
    """
    paths = {module: path for path, module in model.named_modules()}
    memo: dict[int, Any] = {}  # what deepcopy takes for an object it meets, by the object's id
    ordinary: dict[type[nn.Module], bool] = {}
    for module, path in paths.items():
        attributes, kind = vars(module), type(module)
        if attributes["_forward_pre_hooks"] and "weight" in attributes:  # computed before every call
            raise PruningError(
                f"the network cannot be copied (a hook of {path} computes its weight); it must be made permanent first "
                "by torch.nn.utils.prune.remove or remove_spectral_norm; parametrizations need no such step"
            )
        for parameter in attributes["_parameters"].values():
            if parameter is not None and id(parameter) not in memo:
                data = tensors.get(id(parameter))
                if data is None:
                    data = parameter.detach()
                    data = data if share and not data.is_inference() else data.clone()
                memo[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
        for buffer in attributes["_buffers"].values():
            if buffer is not None and id(buffer) not in memo:
                memo[id(buffer)] = tensors[id(buffer)] if id(buffer) in tensors else buffer.detach().clone()
        if kind not in ordinary:
            ordinary[kind] = _is_ordinary(kind)
        if ordinary[kind]:
            memo[id(module)] = object.__new__(kind)
        else:
            memo.update({id(attributes[name]): type(attributes[name])() for name in HOOKS if name in attributes})
    try:
        for module in reversed(paths):  # children first: a parent's own way of copying may look into them
            if ordinary[type(module)]:
                memo[id(module)].__setstate__(_attributes(module, memo))
            else:
                copy.deepcopy(module, memo)
    except Exception as error:
        raise PruningError(
            f"the network cannot be copied ({type(error).__name__}: {error}); masks, weight norms and other computed "
            "weights must be made permanent first, for instance by torch.nn.utils.prune.remove"
        ) from error
    return memo


def _attributes(module: nn.Module, memo: dict[int, Any]) -> dict[str, Any]:
    state = vars(module).copy()
    state.pop(COMPILED, None)
    for name, value in state.items():
        kind = type(value)
        if kind in UNCHANGING or (kind is tuple and UNCHANGING.issuperset(map(type, value))):
            continue
        if kind in (dict, OrderedDict, set, list) and (not value or name in HOOKS):
            state[name] = memo.setdefault(id(value), kind())
        elif name in HELD and kind in (dict, OrderedDict):
            state[name] = kind(
                (key, memo[id(item)] if id(item) in memo else copy.deepcopy(item, memo)) for key, item in value.items()
            )
        else:
            state[name] = copy.deepcopy(value, memo)
    return state


def _is_ordinary(kind: type) -> bool:
    """Whether deepcopy would do what we do: attributes of one dictionary, and no say of the class's own."""
    if hasattr(kind, "__deepcopy__") or any(vars(base).get("__slots__") for base in kind.__mro__):
        return False
    methods = ("__reduce_ex__", "__reduce__", "__new__", "__getstate__")
    restores = next(base for base in kind.__mro__ if "__setstate__" in vars(base))
    return restores.__module__.startswith("torch.nn.") and all(
        getattr(kind, name, None) is getattr(nn.Module, name, None) for name in methods
    )
