"""Search methods at equal numbers of evaluated plans."""
