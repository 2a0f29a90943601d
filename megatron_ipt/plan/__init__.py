"""What a run would be, before a GPU is asked for: every rank's weights and the bytes that stand on it."""
