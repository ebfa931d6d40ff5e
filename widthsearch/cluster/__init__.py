"""Ray: its environment, a node, workers, jobs."""
