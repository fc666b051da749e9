"""Real nodes, real processes, real traffic."""
