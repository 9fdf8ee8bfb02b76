"""QMIX against other implementations, and an ablation of its settings."""
