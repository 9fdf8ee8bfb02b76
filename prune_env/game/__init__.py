"""The multi-agent game: environment, budget, rewards, observations."""
