"""LoRA-tuned T5 sentiment classifiers that can be trusted."""
