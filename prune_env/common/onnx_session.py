"""The optional packages for ONNX, and onnxruntime sessions on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from .command import require_packages

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
"""The packages that the extra `export` installs."""


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
    require_packages(["onnxruntime"], "ONNX", "export")
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
