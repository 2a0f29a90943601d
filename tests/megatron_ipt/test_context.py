"""Slices of sequences and packed documents, against megatron-core's own functions; what `ipt plan` makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from forks import forked_python

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture, check_layout
from megatron_ipt.settings import TrainSettings


@pytest.fixture(scope="module")
def megatron() -> dict[str, Any]:
    """What context_worker.py tells of megatron-core."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import context_worker"
    told = forked_python(code, str(Path(__file__).parent), warm="plain")  # a stand-in comes before megatron-core
    assert isinstance(told, dict)
    return told


def test_slices_and_positions_are_those_of_megatron(megatron: dict[str, Any]) -> None:
    """Every rank of 1, 2 and 4, against get_batch_on_this_cp_rank and get_pos_emb_on_this_cp_rank."""
    assert megatron["slices"] == [True] * 5 * (1 + 2 + 4)


def test_where_documents_end_is_what_megatron_packs(megatron: dict[str, Any]) -> None:
    """PackedSeqParams against megatron-core's own merge of a micro batch, and what its wrapper hands to the kernel."""
    kernel = megatron["kernel"]
    assert kernel["ends"] == kernel["keys"] == megatron["merged"] == [0, 3, 5, 6, 7, 12]
    assert (kernel["format"], kernel["type"], kernel["mask"]) == ("thd", "padding_causal", None)
    assert (kernel["longest"], kernel["dtype"], megatron["shape"]) == ([5, 5], "torch.int32", [1, 12])


def test_our_attention_stands_in_transformer_engines_layers_where_documents_are_split(megatron: dict[str, Any]) -> None:
    theirs = dict.fromkeys(["1 False", "1 True", "2 False", "4 False"], "TEDotProductAttention")
    assert megatron["attention"] == {**theirs, **dict.fromkeys(["2 True", "4 True"], "DotProductAttention")}


def test_a_plan_counts_the_ranks_that_share_a_sequence(megatron: dict[str, Any]) -> None:
    """Four ranks: bf16 weight 2, gradient 4 and 12 bytes of Adam's state over all four, with CP 2 as without."""
    one, two, masked = (megatron[f"plan {name}"] for name in ("1 False", "2 False", "2 True"))
    assert (one[:2], two[:2]) == ([4, 2], [2, 4])
    assert one[2:4] == two[2:4] and one[4] == two[4] == 9 * one[3]
    assert one[5] == 2 * two[5]
    # keys and values of 8 heads of 8 for 16 tokens in 2 bytes, 4 layers
    assert (masked[:5], masked[5] - two[5]) == (two[:5], 2 * 8 * 8 * 16 * 2 * 4)


def test_the_size_has_a_key_of_its_own(megatron: dict[str, Any]) -> None:
    assert "is set by the trainer; use the key train.context_parallel_size" in megatron["refused"]


def test_a_sequence_that_cannot_be_split_is_one_line() -> None:
    train = TrainSettings(global_batch_size=8, seq_length=64, train_iters=1, lr=1e-3, context_parallel_size=3)
    with pytest.raises(UserError, match="seq_length: 64 is no multiple of 2 x context_parallel_size = 6; use 66"):
        check_layout(Architecture(4, 64, 176, 8, 4, 8, 1e-5, 1e4, 512), train, 3)


def test_a_setting_of_later_is_off_in_a_recipe_of_before(megatron: dict[str, Any]) -> None:
    """A checkpoint of before goes on without a word, and is told where the setting is on now."""
    assert megatron["changes"] == [[], ["train.reset_attention_mask False -> True"]]
