"""Indexed datasets in, checkpoints and figures out: Instruction Pre-Training on megatron.core."""
