"""Measurements of one network: accuracy, BatchNorm statistics, latency."""
