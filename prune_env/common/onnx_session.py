"""The optional packages around ONNX: which are missing, and sessions of onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
"""What the extra `export` installs."""


def missing(packages: Sequence[str] = PACKAGES) -> list[str]:
    """Those of the packages that are not installed. Imports nothing."""
    return [name for name in packages if find_spec(name) is None]


def require(packages: Sequence[str] = PACKAGES) -> None:
    """Raises ImportError that says what is missing and how to get it."""
    if names := missing(packages):
        raise ImportError(f'ONNX needs {", ".join(names)}, not installed: pip install -e ".[export]" in the clone')


def runner(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network in an ONNX file as a function: float32 [B, C, H, W] on the CPU -> its output.

    It uses as many threads as torch does now, inside an operation.
    Raises FileNotFoundError, ValueError for a file that onnxruntime refuses, ImportError without onnxruntime.
    """
    require(["onnxruntime"])
    import onnxruntime

    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; write it with prune_env.export.to_onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: warnings would go straight to the terminal
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that go on waiting busily after a run would take the processor from what runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for every kind of failure
        raise ValueError(f"onnxruntime cannot load {file}: {str(error).splitlines()[0]}") from error
    name = session.get_inputs()[0].name

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return run
