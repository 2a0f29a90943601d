"""Task datasets with contexts -> the synthesizer's tuning sequences; `collect.py` is the verb."""
