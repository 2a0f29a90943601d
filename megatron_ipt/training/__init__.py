"""What the loop stands on besides the model: validation and metrics."""
