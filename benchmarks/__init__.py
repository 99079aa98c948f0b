"""Side-by-side speed and memory measurements, one file per question."""
