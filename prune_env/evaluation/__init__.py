"""How good is a plan: accuracy after BatchNorm recalibration, and latency."""
