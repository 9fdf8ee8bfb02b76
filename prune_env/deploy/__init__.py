"""Networks as files: saved pruned networks, exported programs, and factories that are imported by name."""
