"""Hugging Face directories in and out, and the proof that both sides are the same model."""
