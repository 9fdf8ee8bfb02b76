"""Find references by which a copy of a network reaches the original.

`copy.deepcopy` shares functions, weak references and objects with a `__deepcopy__` of their own. What they hold is not
copied, so a copy that calls them may run, and change, layers of the original.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import PruningError

OTHERS = frozenset((*sys.stdlib_module_names, "torch", "torchvision", "numpy"))
"""Top-level packages whose functions and objects hold no layers of a network, containers aside."""
IMPLICIT = frozenset(("forward", "__call__", "__getattr__", "__getitem__", "__enter__", "__iter__", "__next__"))
"""Methods that run although no code names them."""
WRAPPERS = (
    property,
    staticmethod,
    classmethod,
    functools.partialmethod,
    functools.cached_property,
    functools._lru_cache_wrapper,
)
LEAVES = (str, bytes, int, float, complex, type(None), torch.Tensor, torch.dtype, torch.device, type, types.ModuleType)
PLAIN = frozenset((*LEAVES, bool))
CONTAINERS = frozenset((dict, OrderedDict, tuple, list, set))
CONTENTS = frozenset(("_parameters", "_buffers", "_modules"))
"""Attributes whose values are copied, so they need no search."""


class OriginalReached(PruningError):
    """A copy of a network computes with a tensor of the original."""


class OwnTensors(TorchDispatchMode):
    """Refuse every operation on a parameter or buffer of the original while a copy with tensors of its own runs.

    Args:
        original: The original network.

    Raises:
        OriginalReached: The copy computed with a tensor of the original; the message names it.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self._reached: str | None = None
        self._names = {_storage(t): name for name, t in (*original.named_parameters(), *original.named_buffers())}
        self._names.pop(None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and (name := self._names.get(_storage(leaf))) is not None:
                self._reached = name
                self._refuse()
        return func(*args, **kwargs)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if error is None or not isinstance(error, OriginalReached):  # the network may have caught it
            self._refuse()

    def _refuse(self) -> None:
        if self._reached is not None:
            raise OriginalReached(
                f"a copy of the network computes with {self._reached.rpartition('.')[0] or self._reached} of the "
                "original, which it reaches through an object that copies share, such as a function, a class attribute "
                "or an object with a __deepcopy__ of its own; call the layer through self"
            )


def _storage(tensor: torch.Tensor) -> int | None:
    """Identity of a tensor's memory; None if it has none, as sparse tensors."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def reference_to(originals: set[int], copies: Mapping[nn.Module, str]) -> tuple[str, str] | None:
    """Return where copies of modules reach an object of the original network, None if nowhere.

    Searched are all attributes, and all functions that the code of `forward` names.

    Args:
        originals: Ids of the original network's modules, parameters and buffers.
        copies: The copied modules and their paths.

    Returns:
        The path of a module, and the name of its attribute or method.
    """
    found: list[tuple[Any, str, str]] = []
    for module, path in copies.items():
        for name, value in vars(module).items():
            kind = type(value)
            if kind in PLAIN or name in CONTENTS or (kind in CONTAINERS and _is_plain(value)):
                continue  # nearly all, so this must be fast
            found.append((value, path, name))
    classes = {type(module): path for module, path in copies.items()}
    kinds = {base: path for kind, path in classes.items() for base in kind.__mro__ if _is_own(base)}
    names, seen = set(IMPLICIT), {id(module) for module in copies}
    found += [(vars(kind)[name], path, name) for kind, path in kinds.items() for name in names & vars(kind).keys()]
    while found:
        value, path, origin = found.pop()
        if id(value) in originals:
            return path, origin
        if isinstance(value, LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        found += [(part, path, origin) for part in _parts(value)]
        if isinstance(value, types.FunctionType):
            new = _names(value.__code__)[1] - names
            names |= new
            found += [(vars(kind)[name], at, name) for kind, at in kinds.items() for name in new & vars(kind).keys()]
        else:
            for kind in type(value).__mro__:
                if kind not in kinds and _is_own(kind):
                    kinds[kind] = path
                    found += [(vars(kind)[name], path, origin) for name in names & vars(kind).keys()]
    return None


def _is_plain(container: Any) -> bool:
    return not container or (not isinstance(container, dict) and PLAIN.issuperset(map(type, container)))


def _parts(value: Any) -> Iterable[Any]:
    """The objects that an object refers to."""
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value) if _is_own(value) else ()
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, types.CellType):
        try:
            return (value.cell_contents,)
        except ValueError:  # it is empty
            return ()
    if isinstance(value, functools.partial):
        return value.func, *value.args, *value.keywords.values()
    if isinstance(value, WRAPPERS):
        return [getattr(value, name, None) for name in ("fget", "__func__", "func", "__wrapped__")]
    if isinstance(value, weakref.ref):
        return (value(),)
    if isinstance(value, dict):
        return *value, *value.values()
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if not isinstance(value, (types.SimpleNamespace, nn.Module)) and not _is_own(type(value)):
        return ()
    slots = (name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ()))
    return *getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)


def _parts_of_function(function: types.FunctionType) -> Iterator[Any]:
    yield from function.__closure__ or ()
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()
    known = function.__globals__
    yield from (known[name] for name in _names(function.__code__)[0] & known.keys())


def _is_own(value: Any) -> bool:
    """Whether a class or function belongs to the user or to a package that may hold layers."""
    return (value.__module__ or "").split(".")[0] not in OTHERS


@lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names of globals and of attributes that a function's code reads, with those of the functions inside it."""
    steps = list(dis.get_instructions(code))
    names = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    attributes = {step.argval for step in steps if step.opname in ("LOAD_ATTR", "LOAD_METHOD")}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more = _names(inner)
            names, attributes = names | more[0], attributes | more[1]
    return frozenset(names), frozenset(attributes)
