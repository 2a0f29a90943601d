"""The only room that imports megatron.*, transformer_engine or apex.

Each file that does imports `shim` first, or only `quiet` where it touches no device.
"""
