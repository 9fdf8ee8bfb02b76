"""Copy a network without its hooks, with replacements for some of its tensors.

`copy.deepcopy` of every module would take half of the time that building a small network takes, so ordinary modules are
copied attribute by attribute. The result equals that of deepcopy with two exceptions: buffers that are views of each
other become independent, and a second reference to a module's own dictionary of children becomes a new dictionary.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..common.failure import described
from .errors import PruningError
from .groups import named
from .references import CONTENTS, reference_to

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""Attributes of a module whose hooks can change what it computes."""
HOOKS = (
    *FORWARD_HOOKS,
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""All attributes of a module that hold hooks; copies have them empty."""
COMPILED = "_compiled_call_impl"
"""Attribute of `Module.compile`: code for the sizes of the original, which `Module.__getstate__` leaves out as well."""
IMMUTABLE = frozenset((int, float, complex, bool, str, bytes, type(None), torch.Size, torch.dtype, torch.device))


@torch.inference_mode(False)
def shared_copy(model: nn.Module) -> nn.Module:
    """Return a copy without hooks that shares the storage of the parameters and has its own buffers.

    Such a copy can be run, traced and given hooks without an effect on the original.

    Raises:
        PruningError: The network cannot be copied.
    """
    model = uncompiled(model)
    return copy_modules(model, {}, share=True)[id(model)]


def uncompiled(model: nn.Module) -> nn.Module:
    """Return a network without compiled parts, because compiled code only works for the old sizes.

    It is the network that torch.compile was called with, or a copy if torch.compile was called with a part of it.
    """
    while is_compiled(model):
        model = compiled_from(model)
    if any(map(is_compiled, model.modules())):
        return copy_modules(model, {}, share=True)[id(model)]
    return model


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module is the result of torch.compile."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # importing it takes long, and nothing is compiled without it
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def compiled_from(module: nn.Module) -> nn.Module:
    """Return the module that torch.compile was called with."""
    original = vars(module)["_modules"]["_orig_mod"]
    assert isinstance(original, nn.Module)
    return original


def copy_modules(model: nn.Module, replaced: Mapping[int, torch.Tensor], share: bool) -> dict[int, nn.Module]:
    """Return deep copies of a network's modules, by the id of the original module.

    Args:
        model: The network.
        replaced: Id of a parameter or buffer -> the tensor that its copy takes instead.
        share: Whether other parameters share their storage with the original; otherwise they are cloned. Buffers are
            always cloned, because a forward pass may write to them.

    Raises:
        PruningError: A module cannot be copied.
    """
    paths = {module: path for path, module in model.named_modules()}
    memo: dict[int, Any] = {}  # id of an object -> its copy, as deepcopy uses it
    ordinary: dict[type[nn.Module], bool] = {}
    for module, path in paths.items():
        kind = type(module)
        if is_compiled(module):
            continue
        _copy_tensors(module, path, replaced, share, memo)
        if kind not in ordinary:
            ordinary[kind] = _is_ordinary(kind)
        if ordinary[kind]:
            memo[id(module)] = object.__new__(kind)
        else:
            hooks = [vars(module)[name] for name in HOOKS if name in vars(module)]
            memo.update({id(hook): type(hook)() for hook in hooks})
    module = model
    try:
        with _WithoutGraphs():
            for module in reversed(paths):  # children first: a parent's own way of copying may use them
                if is_compiled(module):
                    memo[id(module)] = memo[id(compiled_from(module))]
                elif ordinary[type(module)]:
                    memo[id(module)].__setstate__(_attributes(module, paths[module], memo))
                else:
                    memo[id(module)] = copied = copy.deepcopy(module, memo)
                    if copied is not module:
                        copied.train(module.training)  # a graph has one program for each mode
        for module in paths:
            memo[id(module)].training = module.training
    except PruningError:
        raise
    except Exception as error:
        raise _uncopied(named(paths[module]), error) from error
    _check_independent(paths, memo)
    return memo


class _WithoutGraphs(TorchFunctionMode):
    """Let deepcopy copy tensors that are results of an earlier forward pass, without their graph."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and args[0].grad_fn is not None:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def _check_independent(paths: Mapping[nn.Module, str], memo: Mapping[int, Any]) -> None:
    """Check that copies reach no module or tensor of the originals, see `copy_modules`."""
    originals = {id(module) for module in paths}
    for module in paths:
        originals |= {id(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())}
    originals.discard(id(None))
    copies = {memo[id(module)]: path for module, path in paths.items()}
    found = next(((path, "__deepcopy__") for module, path in copies.items() if id(module) in originals), None)
    found = found or reference_to(originals, copies)
    if found is not None:
        path, name = found
        raise PruningError(
            f"{named(path)}: {name} holds a function, a reference or an object that copies share and that "
            "reaches layers of this network, so a copy would call and change the original's layers; make it a method "
            "that uses self"
        )


def _copy_tensors(
    module: nn.Module, path: str, replaced: Mapping[int, torch.Tensor], share: bool, memo: dict[int, Any]
) -> None:
    """Add copies of a module's own parameters and buffers to `memo`."""
    attributes = vars(module)
    computed = [name for name in ("weight", "bias") if name in attributes and attributes["_forward_pre_hooks"]]
    if computed:  # before every call
        raise PruningError(
            f"the network cannot be copied (a hook of {named(path)} computes its {computed[0]}); make it "
            "permanent first with remove_weight_norm, remove_spectral_norm or prune.remove of torch.nn.utils"
        )
    for parameter in attributes["_parameters"].values():
        if parameter is not None and id(parameter) not in memo:
            data = replaced.get(id(parameter))
            if data is None:
                data = parameter.detach()
                data = data if share and not data.is_inference() else data.clone()
            memo[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    for buffer in attributes["_buffers"].values():
        if buffer is not None and id(buffer) not in memo:
            memo[id(buffer)] = replaced[id(buffer)] if id(buffer) in replaced else buffer.detach().clone()


def _uncopied(what: str, error: Exception) -> PruningError:
    return PruningError(
        f"the network cannot be copied, because copy.deepcopy fails for {what} ({described(error)}); delete it before, "
        "or give it a __deepcopy__"
    )


def _attributes(module: nn.Module, path: str, memo: dict[int, Any]) -> dict[str, Any]:
    """Copies of all attributes of an ordinary module."""
    state = vars(module).copy()
    state.pop(COMPILED, None)
    for name, value in state.items():
        kind = type(value)
        if kind in IMMUTABLE or (kind is tuple and IMMUTABLE.issuperset(map(type, value))):
            continue
        if kind in (dict, OrderedDict, set, list) and (not value or name in HOOKS):
            state[name] = memo.setdefault(id(value), kind())
        elif name in CONTENTS and kind in (dict, OrderedDict):
            state[name] = kind(
                (key, memo[id(item)] if id(item) in memo else copy.deepcopy(item, memo)) for key, item in value.items()
            )
        else:
            try:
                state[name] = copy.deepcopy(value, memo)
            except Exception as error:
                raise _uncopied(f"{name} of {named(path)} ({type(module).__name__})", error) from error
    return state


def _is_ordinary(kind: type) -> bool:
    """Whether modules of a class consist of a dictionary of attributes that deepcopy would copy in the same way."""
    if hasattr(kind, "__deepcopy__") or any(vars(base).get("__slots__") for base in kind.__mro__):
        return False
    methods = ("__reduce_ex__", "__reduce__", "__new__", "__getstate__")
    restores = next(base for base in kind.__mro__ if "__setstate__" in vars(base))
    return restores.__module__.startswith("torch.nn.") and all(
        getattr(kind, name, None) is getattr(nn.Module, name, None) for name in methods
    )
