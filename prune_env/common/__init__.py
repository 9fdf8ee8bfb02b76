"""Helpers that know nothing of pruning: files, devices, ONNX sessions, figures."""
