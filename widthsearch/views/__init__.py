"""What people see: the summary of a study, as tables, figures and pages.  No torch, no Ray."""
