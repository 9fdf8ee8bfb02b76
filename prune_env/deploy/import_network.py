"""Make a network from a name that is not registered.

PACKAGE.MODULE:FUNCTION or FILE.py:FUNCTION, where FUNCTION is a function or class that is called without arguments, or
a network; torchvision:NAME or timm:NAME. torch's random state is restored.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from operator import attrgetter
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..networks.registry import list_networks
from .model_library import check_library_model, library_model, library_of

LIBRARIES = tuple(
    str(Path(file).parent) + os.sep for file in (os.__file__, Path(torch.__file__).parent, Path(__file__).parent)
)
"""Folders of Python, of installed packages and of this package, whose code is not the user's."""


def check_spec(spec: str) -> None:
    """Check that a name may stand for a network that is not registered, before anything is imported from it.

    Raises:
        FileNotFoundError: The file does not exist.
        ImportError: torchvision or timm is not installed.
        ValueError: The name has another form, or torchvision or timm has no such model.
    """
    file, _ = _file_and_function(spec)
    if library_of(spec) is not None:
        check_library_model(spec)
    elif file.endswith(".py"):
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file} does not exist")
    elif ":" not in spec:
        raise ValueError(
            f"network {spec!r} is not registered; choose one of {', '.join(list_networks())}, or give "
            "FILE.py:FUNCTION, PACKAGE.MODULE:FUNCTION, torchvision:NAME or timm:NAME"
        )


def import_network(spec: str, num_classes: int | None = None, *, pretrained: bool = False) -> nn.Module:
    """Import or make the network that a name stands for. Modules of the working folder are found.

    Args:
        spec: package.module:function, FILE.py:function, torchvision:NAME or timm:NAME.
        num_classes: Number of logits of a model of torchvision or timm; None for that of the model.
        pretrained: Let torchvision or timm download their weights.

    Raises:
        FileNotFoundError: The file does not exist.
        ImportError: torchvision or timm is not installed.
        ValueError: The module cannot be imported, or does not make a network.
    """
    if library_of(spec) is not None:
        return library_model(spec, num_classes, pretrained=pretrained)
    file, function = _file_and_function(spec)
    with working_folder():
        return network_from_file(file, function) if file.endswith(".py") else network_from_path(spec)


@contextmanager
def working_folder() -> Iterator[None]:
    """Let modules of the working folder be imported in the block, for code that a user names.

    Python's option -P forbids it.
    """
    folder = os.getcwd()
    if getattr(sys.flags, "safe_path", False):
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _file_and_function(spec: str) -> tuple[str, str]:
    file, _, function = (spec, "", "") if spec.endswith(".py") else spec.rpartition(":")
    return file, function


def network_from_path(path: str, excluded: Path | None = None) -> nn.Module:
    """Import or make the network of an import path 'package.module:factory'.

    Args:
        path: The import path.
        excluded: A folder from which nothing is imported.

    Raises:
        ValueError: The path cannot be imported, or does not make a network.
    """
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        raise ValueError(f"import path {path!r} must have the form 'package.module:factory'")
    if module == "__main__":
        raise ValueError(f"import path {path!r} is another module in every program; move the factory to a file")
    try:
        with torch.random.fork_rng(devices=[]), _nothing_from(excluded):
            imported = import_module(module)
            if excluded is not None:  # it may have been imported before
                _Exclusion(excluded.resolve()).check(imported.__spec__)
            factory = attrgetter(name)(imported)
    except (Exception, SystemExit) as error:  # a user's module can raise anything
        raise ValueError(
            f"import path {path!r} cannot be imported ({_describe(error)}); install its package, or run Python in a "
            "folder from which it can be imported"
        ) from error
    with _nothing_from(excluded):
        return _make(factory, f"import path {path!r}")


class _Exclusion:
    """A finder for the start of `sys.meta_path`: it refuses modules of a folder, and leaves others to the next finders.

    Args:
        folder: The folder, an absolute path without links.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return None.

        Raises:
            ImportError: The module is in the folder.
        """
        for finder in sys.meta_path:
            if not isinstance(finder, _Exclusion) and (spec := finder.find_spec(name, path, target)) is not None:
                self.check(spec)
                break
        return None

    def check(self, spec: ModuleSpec | None) -> None:
        """Check the file and the folders of a module.

        Raises:
            ImportError: One of them is in the folder. Installed packages are allowed.
        """
        if spec is None:
            return
        for location in (spec.origin, *(spec.submodule_search_locations or ())):
            file = Path(location or sys.prefix).resolve()
            if file.is_relative_to(self.folder) and not file.is_relative_to(Path(sys.prefix).resolve()):
                raise ImportError(
                    f"module {spec.name} is {location}, but nothing is imported from the folder of the saved network; "
                    "move the module elsewhere",
                    name=spec.name,
                )


@contextmanager
def _nothing_from(folder: Path | None) -> Iterator[None]:
    """Refuse to import modules of a folder in the block; None refuses nothing."""
    if folder is None:
        yield
        return
    exclusion = _Exclusion(folder.resolve())
    sys.meta_path.insert(0, exclusion)
    try:
        yield
    finally:
        sys.meta_path.remove(exclusion)


def network_from_file(file: str, name: str) -> nn.Module:
    """Import or make the network `name` of a Python file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file cannot be imported, or `name` does not make a network; the message lists what the file
            defines.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} does not exist")
    title = "prune_env_inspected"  # a name that no installed module has, unlike the file's
    spec = spec_from_file_location(title, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[title] = module_from_spec(spec)
    try:
        with torch.random.fork_rng(devices=[]):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file can raise anything
        raise ValueError(f"{file} cannot be imported ({_describe(error)})") from error
    try:
        factory = attrgetter(name)(module)
    except AttributeError:
        fault = f"{file} has no {name!r}" if name else f"{file} does not name the function that makes the network"
        raise ValueError(
            f"{fault}; give {file}:FUNCTION, a function that makes it without arguments. The file defines "
            + (", ".join(_candidates(module)) or "none")
        ) from None
    return _make(factory, f"{file}:{name}")


def _candidates(module: ModuleType) -> list[str]:
    """Return the names of the networks, functions and classes that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            isinstance(value, nn.Module)
            or (callable(value) and getattr(value, "__module__", module.__name__) == module.__name__)
        )
    ]


def _make(factory: Any, title: str) -> nn.Module:
    """Return the factory if it is a network, and otherwise the network that it makes."""
    if isinstance(factory, nn.Module):
        return factory
    try:
        signature(factory).bind()
    except TypeError as error:
        raise ValueError(
            f"{title} cannot be called without arguments ({error}); name a function that makes the original network"
        ) from error
    except ValueError:  # a built-in function without a signature
        pass
    try:
        with torch.random.fork_rng(devices=[]):
            network = factory()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{title} failed when it was called ({_describe(error)})") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{title} makes a {type(network).__name__}; it must make the original network")
    return network


def _describe(error: BaseException) -> str:
    """Return type and message of an error, and the innermost line of the user's code in its traceback."""
    text = f"{type(error).__name__}: {error}"
    for frame in reversed(extract_tb(error.__traceback__)):
        if not frame.filename.startswith(("<", *LIBRARIES)):
            return f"{text}, in {frame.filename}, line {frame.lineno}"
    return text
