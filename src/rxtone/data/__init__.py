"""Tables, reviews, splits and prompts. Nothing in here reaches torch."""
