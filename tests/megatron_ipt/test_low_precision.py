"""Emulated FP8 against the 256 values that the formats have, and against three products written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from forks import forked_python


@pytest.fixture(scope="module")
def told() -> Any:
    """What low_precision_worker.py tells."""
    return forked_python(
        "import sys; sys.path.insert(0, sys.argv[1]); import low_precision_worker", str(Path(__file__).parent)
    )


def test_a_tensor_is_rounded_to_the_nearest_values_of_the_format(told: Any) -> None:
    formats = told["formats"]
    assert formats.pop("zeros") == [0, 0, 0]
    assert len(formats) == 6
    for name, (off, changed) in formats.items():
        assert off < 1e-6 and changed > 0.9, name


def test_the_three_products_of_a_layer_have_rounded_operands(told: Any) -> None:
    assert len(told["products"]) == 4
    for layer, off in told["products"].items():
        assert max(off) < 1e-6, layer


def test_every_matrix_of_a_layer_is_emulated(told: Any) -> None:
    kinds = ("ColumnParallelLinear", "RowParallelLinear") * 2
    for fp8, prefix in (("None", ""), ("hybrid", "Emulated"), ("e4m3", "E4M3")):
        assert told["spec"][fp8] == [prefix + kind for kind in kinds]


def test_full_precision_is_that_of_the_plain_layer_and_ends(told: Any) -> None:
    assert told["switched"] == {"within": [None, True], "unwanted": ["hybrid", True], "after": ["hybrid", True, False]}
