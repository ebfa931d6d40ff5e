"""The only state: the Optuna database, its lock, what is written into it, the checkpoint folder."""
