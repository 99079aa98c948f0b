"""Arrays to numbers: metrics and what it takes to defend them. Nothing in here reaches torch."""
