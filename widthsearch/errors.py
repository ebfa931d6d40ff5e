"""The two ways in which a search can refuse: the user's input is wrong, or a training run failed."""


class UsageError(Exception):
    """Wrong use or a bad study.  One line that quotes the bad value and says what would be right."""


class TrainingError(Exception):
    """A training run ended without a usable result (a loss that is not finite, say)."""
