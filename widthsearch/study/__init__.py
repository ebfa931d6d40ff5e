"""What the user writes, checked."""
