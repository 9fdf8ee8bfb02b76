"""The recipe by which all networks are trained unless another one is given."""

from prune_env.training.distillation import DistillationConfig

RECIPE = DistillationConfig(min_steps=0, select_best=False)
"""The default recipe of a distillation; the last weights count."""
