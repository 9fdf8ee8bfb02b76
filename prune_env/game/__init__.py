"""The multi-agent game: agents, rounds, budget, rewards and observations."""
