"""Pure functions of numbers: the rule, the cost of widths, intervals.  Neither torch nor Ray."""
