"""Runs that give the same bits each time: what the environment must say before any library reads it.  Pure.

Kernels are chosen by environment variables that NCCL, cuBLAS and Transformer Engine read at their first use, so a
launcher sets them for its workers and a worker before it loads torch.  Values are those megatron-core 0.19 accepts
under its own deterministic mode.  The rest is `mcore.device.deterministic` and TransformerConfig.deterministic_mode.
"""

from __future__ import annotations

from collections.abc import MutableMapping

from data_prep.errors import UserError

ACCEPTED = {
    "NCCL_ALGO": ("Ring", "CollnetDirect", "CollnetChain", "^NVLS"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
}
"""Values under which a result depends on nothing but its input; the first is ours.  NCCL's are a list."""


def prepare(environment: MutableMapping[str, str]) -> None:
    """Set what is not set; UserError for a value that lets results vary."""
    for name, values in ACCEPTED.items():
        told = environment.setdefault(name, values[0])
        parts = [part.strip() for part in told.split(",")] if name == "NCCL_ALGO" else [told]
        if not set(parts) <= set(values):
            mend = f"unset it, or use {' or '.join(values)}"
            raise UserError(name, f"{told} does not go with train.deterministic_mode", mend)
