"""One training run: loops, gates, controller, checkpoints, other pruners."""
