"""Export a pruned network as an ONNX file, in float32 or int8, or as a torch.export program."""

from __future__ import annotations

from .deploy.export import ExportError, to_onnx, to_torch_export
from .deploy.quantise import quantise_onnx

__all__ = ["ExportError", "quantise_onnx", "to_onnx", "to_torch_export"]
