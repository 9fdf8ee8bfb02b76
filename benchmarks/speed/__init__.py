"""Benchmarks of the speed of the environment, the evaluator and surgery, as ratios measured in one run."""
