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
from collections import OrderedDict, UserList, deque
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

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
"""Types that hold one or more functions, and nothing else that is searched."""
LEAVES = (str, bytes, int, float, complex, type(None), torch.Tensor, torch.dtype, torch.device, types.ModuleType)
"""Types, with their subclasses, whose values refer to nothing that is searched."""
PLAIN = frozenset((*LEAVES, bool))
"""The exact types that nearly all attributes have, for a fast check."""
CONTAINERS = frozenset((dict, OrderedDict, tuple, list, set))
"""The exact types of containers that need no search if they are empty or, dicts aside, hold `PLAIN` values only."""
COLLECTIONS = (list, tuple, set, frozenset, deque, UserList, weakref.WeakSet)
"""Types whose values are searched one by one."""
CONTENTS = frozenset(("_parameters", "_buffers", "_modules"))
"""Attributes whose values are copied, so they need no search."""


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
    if isinstance(value, type):
        return vars(value).values() if _is_own(value) else ()
    if isinstance(value, Mapping):  # also WeakValueDictionary, UserDict and ChainMap
        return *value, *value.values()
    if isinstance(value, COLLECTIONS):
        return list(value)
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
