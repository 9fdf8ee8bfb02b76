"""Export a pruned network as an ONNX file or as a torch.export program."""

from __future__ import annotations

from .deploy.export import ExportError, to_onnx, to_torch_export

__all__ = ["ExportError", "to_onnx", "to_torch_export"]
