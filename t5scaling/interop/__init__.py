"""Checkpoints of other systems, both ways: T5X's and Hugging Face's."""
