"""The commands that put environment and agent together: `prune-env prune`, `search` and `report`."""
