"""Benchmarks of QMIX: speed and strength against other implementations, and an ablation of its settings."""
