"""Launching and resuming: the one process that asks and tells."""
