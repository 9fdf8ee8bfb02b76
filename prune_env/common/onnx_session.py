"""The optional packages for ONNX, and onnxruntime sessions on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
"""The packages that the extra `export` installs."""


def missing_packages(packages: Sequence[str] = PACKAGES) -> list[str]:
    """Return the names of the packages that are not installed, without importing any."""
    return [name for name in packages if find_spec(name) is None]


def require_packages(packages: Sequence[str] = PACKAGES) -> None:
    """Check that packages are installed.

    Raises:
        ImportError: A package is missing; the message names it and the command that installs it.
    """
    if names := missing_packages(packages):
        raise ImportError(f'ONNX needs {", ".join(names)}, not installed: pip install -e ".[export]" in the clone')


def open_session(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load an ONNX file into onnxruntime on the CPU, with as many threads per operation as torch uses now.

    Args:
        file: The ONNX file; it has one input and one output.

    Returns:
        A function from images, float32 [B, C, H, W] on the CPU, to the network's output.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: onnxruntime cannot load the file.
        ImportError: onnxruntime is not installed.
    """
    require_packages(["onnxruntime"])
    import onnxruntime

    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; write it with prune_env.export.to_onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # only errors, as warnings would go straight to the terminal
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that keep spinning after a run would slow down the code that runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a separate class for every kind of failure
        raise ValueError(f"onnxruntime cannot load {file}: {str(error).splitlines()[0]}") from error
    name = session.get_inputs()[0].name

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return run
