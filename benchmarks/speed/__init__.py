"""How fast the environment, the evaluator and surgery are, as ratios in one run."""
