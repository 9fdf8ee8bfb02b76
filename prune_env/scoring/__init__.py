"""How good one network is, as it stands: accuracy, BatchNorm statistics, latency."""
