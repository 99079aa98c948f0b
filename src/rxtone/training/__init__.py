"""Objective, checkpoints and the loop."""
