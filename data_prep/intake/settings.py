"""Settings of the intake: under which keys a row has its text and its id, and how long a document may be."""

from __future__ import annotations

from pydantic import Field

from data_prep.settings import Settings


class IntakeSettings(Settings):
    """What is read of each input, and how."""

    text_key: str = Field("text", min_length=1, description="key of the text in each row")
    id_key: str = Field("id", min_length=1, description="key of the row's id; without one: a hash of source and text")
    source: str = Field("", description="name of the corpus; a row's own `source` and an input's NAME= go before it")
    split: str = Field("train", min_length=1, description="which split of a Hugging Face dataset is read")
    max_document_bytes: int = Field(
        16 << 20,
        ge=1,
        description="longest line of JSONL, .txt file, or row of a table that is read; longer are dropped [bytes]",
    )
