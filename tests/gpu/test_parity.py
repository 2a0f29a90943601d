"""fp32 on this device against transformers on the CPU, through the gate that guards every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpu import runs
from megatron_ipt.fp32 import VARIABLE

EXACT = 1e-6
"""An fp32 product of 1,024 terms is off by about 3e-7 of its norm, one in TF32 by about 3e-4."""


def test_the_gate_passes_a_model_of_a_real_size(tmp_path: Path, write_dataset: Any, figures: Any) -> None:
    """Its limits are for fp32: max |dlogit| 1e-3, |dloss| 1e-5."""
    real = runs.make(tmp_path, write_dataset, None if runs.REHEARSAL else runs.SMOLLM2_135M)
    found = real.run({"gated": ("run", ["train.parity_gate=true", "train.train_iters=3"])})["gated"]
    (row,) = runs.rows_of(found, "parity")
    figures(layers=found["layers"], **{name: row[name] for name in ("dloss", "max_dlogit", "mean_dlogit", "kl")})
    assert row["passed"] and row["precision"] == "float32"


@pytest.mark.parametrize("tf32", [False, True])
def test_what_an_fp32_product_loses(tf32: bool, setting: runs.Setting, figures: Any) -> None:
    """The layers' product as a run of ours computes it (megatron_ipt/fp32.py), and with TF32 allowed."""
    told = setting.run({"product": ("product", [])}, environment={VARIABLE: "1"} if tf32 else {})["product"]
    figures(off=told["off"], layers=told["layers"])
    assert told["off"] <= (1e-3 if tf32 else EXACT)
