"""Settings of `ipt data collect`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from data_prep.settings import Settings


class CollectSettings(Settings):
    """ipt data collect: task datasets with contexts -> tuning sequences of the synthesizer (paper, section 2.1)."""

    tokenizer: Path | None = Field(None, description="Hugging Face directory or SentencePiece file of the synthesizer")
    seq_length: int = Field(
        4096, ge=16, description="longest tuning sequence, BOS and EOS of its shots included [tokens]"
    )
    max_examples: int = Field(
        10_000, ge=1, description="examples of a dataset; those with the most pairs stay, ties are drawn [examples]"
    )
    held_out: tuple[str, ...] = Field((), description="names of datasets that are set apart, not tuned on")
    context_key: str = Field("context", description="key of the text that the pairs are about")
    pairs_key: str = Field("QA_list", description="key of the list of pairs, objects with Q and A")
    seed: int = Field(1234, description="seed of the draws; a draw depends on (seed, example id) only")
