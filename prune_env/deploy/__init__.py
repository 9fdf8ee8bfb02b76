"""Networks that leave and enter: saved records, exported files, imported factories."""
