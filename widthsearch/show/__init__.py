"""What people see: pages, figures, drawings, progress."""
