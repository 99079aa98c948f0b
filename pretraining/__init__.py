"""Builds the base model that ships with rxtone: corpus, distillation, instruction tuning, probes, export."""
