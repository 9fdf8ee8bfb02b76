"""A network from the name of what makes it: PACKAGE.MODULE:FUNCTION, or FILE.py:FUNCTION.

FUNCTION is a function or a class that is called without arguments, or a network itself. Torch's random state is left
alone.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from operator import attrgetter
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch
from torch import nn

LIBRARIES = tuple(
    str(Path(file).parent) + os.sep for file in (os.__file__, Path(torch.__file__).parent, Path(__file__).parent)
)
"""Where Python, installed packages and this one lie: what runs there is not the user's code."""


def imported(path: str) -> nn.Module:
    """The network of `package.module:factory`. Raises ValueError where it cannot be imported or makes none."""
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        raise ValueError(f"import path {path!r} must read 'package.module:factory'")
    if module == "__main__":
        raise ValueError(f"import path {path!r} means another module in every program; move the factory to a file")
    try:
        with torch.random.fork_rng(devices=[]):
            factory = attrgetter(name)(import_module(module))
    except Exception as error:  # whatever the user's module raises when it is run
        raise ValueError(
            f"import path {path!r} cannot be imported ({_told(error)}); install its package, or run Python where it "
            "can be imported"
        ) from error
    return _made_by(factory, f"import path {path!r}")


def from_file(file: str, name: str) -> nn.Module:
    """The network of FILE.py:FUNCTION. Raises FileNotFoundError, or ValueError that says what the file defines."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} does not exist")
    title = "prune_env_inspected"  # a name of its own: the file's may be that of an installed module
    spec = spec_from_file_location(title, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[title] = module_from_spec(spec)
    try:
        with torch.random.fork_rng(devices=[]):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the file raises when it is run
        raise ValueError(f"{file} cannot be imported ({_told(error)})") from error
    try:
        factory = attrgetter(name)(module)
    except AttributeError:
        own = [
            key
            for key, value in vars(module).items()
            if not key.startswith("_")
            and (isinstance(value, nn.Module) or (callable(value) and getattr(value, "__module__", title) == title))
        ]
        raise ValueError(
            (f"{file} has no {name!r}" if name else f"{file} alone does not say what makes the network")
            + f"; give {file}:FUNCTION, a function that makes it without arguments. The file defines "
            + (", ".join(own) or "none")
        ) from None
    return _made_by(factory, f"{file}:{name}")


def _made_by(factory: Any, title: str) -> nn.Module:
    """The network that is named, or what the function or class of that name makes."""
    if isinstance(factory, nn.Module):
        return factory
    try:
        signature(factory).bind()
    except TypeError as error:
        raise ValueError(
            f"{title} cannot be called without arguments ({error}); name a function that makes the unpruned network"
        ) from error
    except ValueError:  # built in, without a signature
        pass
    try:
        with torch.random.fork_rng(devices=[]):
            network = factory()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{title} failed when it was called ({_told(error)})") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{title} makes a {type(network).__name__}; it must make the unpruned network")
    return network


def _told(error: BaseException) -> str:
    """Type and message of an error, and the innermost line of the user's code that it came through."""
    told = f"{type(error).__name__}: {error}"
    for frame in reversed(extract_tb(error.__traceback__)):
        if not frame.filename.startswith(("<", *LIBRARIES)):
            return f"{told}, in {frame.filename}, line {frame.lineno}"
    return told
