"""The only room that imports megatron.*, transformer_engine or apex.

Importing it makes megatron-core usable on the device at hand: on a CPU, `device.install()` gives
the few `torch.cuda` functions that megatron-core calls unconditionally their CPU meaning.
"""

from megatron_ipt.mcore import device

device.install()
