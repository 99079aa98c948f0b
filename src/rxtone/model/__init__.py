"""The T5 base, its LoRA adapter, batches and label scores."""
