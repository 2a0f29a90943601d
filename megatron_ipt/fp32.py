"""Products in fp32 are whole ones on a GPU too: what the environment must say before any library reads it.  Pure.

Transformer Engine's fp32 products go through TF32 (19 bits of a number's 32) whatever torch is told
(common/gemm/cublaslt_gemm.cu), and the parity gate allows 1e-3 in a logit.  Training in bf16 or FP8 has no such
products, so nothing gets slower.  NVIDIA's libraries read the variable as they are loaded.
"""

from __future__ import annotations

from collections.abc import MutableMapping

VARIABLE = "NVIDIA_TF32_OVERRIDE"


def without_tf32(environment: MutableMapping[str, str]) -> None:
    """Forbid TF32 where the user has not said otherwise."""
    environment.setdefault(VARIABLE, "0")
