"""Many runs, one table: comparisons and the paper's tables, from their plan to their reports."""
