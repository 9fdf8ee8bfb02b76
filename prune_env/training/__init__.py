"""Training and distillation: one loop, two losses."""
