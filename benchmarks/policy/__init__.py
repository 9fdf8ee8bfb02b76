"""Learn one pruning policy on many small networks, and judge it on networks that it never saw."""
