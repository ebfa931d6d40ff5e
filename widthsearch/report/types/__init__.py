"""What studies found, as typed objects: ``show --json`` prints them."""
