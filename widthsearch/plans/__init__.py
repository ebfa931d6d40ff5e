"""What a study of each kind does next: pure functions of its plan and its trials.  Neither torch nor Ray."""
