"""Helpers that are independent of pruning: argument checks, files, fingerprints, devices, ONNX sessions, figures."""
