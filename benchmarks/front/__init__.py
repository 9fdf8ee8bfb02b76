"""The front in one search: one policy for several budgets against one search for each, at equal evaluations in all."""
