"""What commands share: checks before anything is computed, and one line for a mistake."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

FAULTS = (RuntimeError, NotImplementedError, RecursionError)
"""Errors of the program or of torch, not of the user. Other subclasses of RuntimeError have messages for the user."""


@contextmanager
def one_line_errors(interrupted: str = "Interrupted.") -> Iterator[None]:
    """End the process with one line on stderr where the block raises an error that its user can mend.

    The exit status is 2, and 130 for Ctrl-C. Warnings are one line as well.

    Args:
        interrupted: The line for Ctrl-C.
    """
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"warning: {one_line(message)}\n"
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError, RuntimeError) as error:
        if type(error) in FAULTS:
            raise
        print("error:", one_line(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(130)
    finally:
        warnings.formatwarning = usual


def one_line(error: object) -> str:
    """Return the message of an error or a warning as one line without control characters, which a terminal obeys."""
    line = " ".join(str(error).split())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def check_writable(name: str, path: Path, *, folder: bool = False) -> None:
    """Check that a file or folder can be written, and leave nothing behind.

    Args:
        name: What it is, for the message.
        path: The file or folder; missing parent folders will be created when it is written.
        folder: Whether it is a folder.

    Raises:
        OSError: It cannot be written; the message names it and the reason.
    """
    try:
        place = path
        while not place.exists():
            place = place.parent
        if place == path and not folder:
            with path.open("rb+"):
                place = path.parent
        with TemporaryDirectory(prefix=".prune_env-", dir=place):
            pass
    except OSError as error:
        raise OSError(f"{name} {path} cannot be written ({error.strerror or error}); give another place") from error


def missing_packages(packages: Sequence[str]) -> list[str]:
    """Return the names of the packages that are not installed, without importing any."""
    return [name for name in packages if find_spec(name) is None]


def require_packages(packages: Sequence[str], purpose: str, extra: str) -> None:
    """Check that packages are installed, without importing any.

    Args:
        packages: Names of modules.
        purpose: What needs them.
        extra: The extra of this project that installs them.

    Raises:
        ImportError: A package is missing; the message names it and the command that installs it.
    """
    if names := missing_packages(packages):
        raise ImportError(
            f'{purpose} needs {", ".join(names)}, not installed: pip install -e ".[{extra}]" in the clone'
        )
