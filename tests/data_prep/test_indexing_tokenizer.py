"""No text spells a control token, whatever the tokenizer's kind; everything else is encoded as ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers_for_tests import encode_batch

from data_prep.errors import UserError
from data_prep.indexing.tokenizer import TextTokenizer, check_tokenizer, load_tokenizer
from data_prep.settings import IndexSettings

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
RAW = IndexSettings(prepend_bos=False, append_eod=False)


def byte_level(merges: list[tuple[str, str]] | None = None) -> Tokenizer:
    """Byte-level BPE with some merges; `</s>` is in its vocabulary, as the last merge makes it."""
    merges = merges or [("t", "h"), ("th", "e"), ("<", "/"), ("s", ">"), ("</", "s>")]
    vocab = {token: index for index, token in enumerate([*ALPHABET, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def not_marked_special() -> Tokenizer:
    """BOS and EOS are added tokens, but only tokenizer_config.json says what they are."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<s>", special=False), AddedToken("</s>", special=False)])
    return tokenizer


def unigram() -> Tokenizer:
    """As SentencePiece makes them: Metaspace, byte fallback, and control tokens inside the vocabulary."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁the", -1.0), ("s", -3.0), ("</", -5.0)]
    fallback = [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram([*pieces, *fallback], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return special(tokenizer)


def metaspace_bpe() -> Tokenizer:
    """SentencePiece BPE as Llama 2 and Mistral have it: byte fallback, UNK in the model."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "▁t", "s", ">", "<"]
    vocab = {token: index for index, token in enumerate([*tokens, "s>"])}
    merges = [("▁", "t"), ("s", ">"), ("<", "s>")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return special(tokenizer)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "special": lambda: special(byte_level([("t", "h"), ("th", "e")])),
    "merged": lambda: special(byte_level()),
    "not_marked_special": not_marked_special,
    "unigram": unigram,
    "metaspace_bpe": metaspace_bpe,
}


def save(tokenizer: Tokenizer, folder: Path, **named: object) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", **named}))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, TextTokenizer]:
    """A tokenizer of each kind, and our encoder made from it."""
    original = KINDS[request.param]()
    return original, load_tokenizer(save(original, tmp_path_factory.mktemp("tokenizer")), RAW)


@pytest.mark.parametrize("text", ["a </s> b", "</s>", "<s>", "the <s></s>the", "x</s", "<s", "<<s>s></s></s>>"])
def test_literal_control_tokens_stay_text(pair: tuple[Tokenizer, TextTokenizer], text: str) -> None:
    original, ours = pair
    (tokens,) = encode_batch(ours, [text])
    assert not {ours.identity.bos_id, ours.identity.eos_id} & set(tokens.tolist())
    assert original.decode(tokens.tolist(), skip_special_tokens=False).strip() == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"])))
def test_other_text_is_encoded_as_by_the_original(pair: tuple[Tokenizer, TextTokenizer], text: str) -> None:
    original, ours = pair
    assert encode_batch(ours, [text])[0].tolist() == original.encode(text, add_special_tokens=False).ids


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text("<s>/ the\U0010ffff"))
def test_no_text_at_all_gives_a_control_token(pair: tuple[Tokenizer, TextTokenizer], text: str) -> None:
    _, ours = pair
    assert not {ours.identity.bos_id, ours.identity.eos_id} & set(encode_batch(ours, [text])[0].tolist())


def test_added_tokens_that_are_text_stay_tokens(tmp_path: Path) -> None:
    tokenizer = special(byte_level())
    tokenizer.add_tokens([AddedToken("        ", special=False)])
    ours = load_tokenizer(save(tokenizer, tmp_path), RAW)
    blanks = tokenizer.token_to_id("        ")
    assert encode_batch(ours, ["a        b"])[0].tolist()[1] == blanks


@pytest.mark.parametrize(("post_process", "begins"), [(True, True), (False, False)])
def test_bos_is_by_default_what_the_post_processor_does(tmp_path: Path, post_process: bool, begins: bool) -> None:
    tokenizer = special(byte_level())
    bos, eos = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    if post_process:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    ours = load_tokenizer(save(tokenizer, tmp_path), IndexSettings())
    tokens = encode_batch(ours, ["the"])[0].tolist()
    assert ours.identity.prepend_bos is begins
    assert tokens == [*([bos] if begins else []), tokenizer.token_to_id("the"), eos]
    forced = load_tokenizer(tmp_path, IndexSettings(prepend_bos=not begins))
    assert (encode_batch(forced, ["the"])[0][0] == bos) is not begins


def test_truncation_and_padding_of_the_file_are_not_obeyed(tmp_path: Path) -> None:
    tokenizer = special(byte_level())
    plain = load_tokenizer(save(tokenizer, tmp_path / "plain"), RAW).identity
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=20)
    ours = load_tokenizer(save(tokenizer, tmp_path / "cut"), RAW)
    assert len(encode_batch(ours, ["x" * 10])[0]) == 10
    assert ours.identity == plain


def test_eod_is_named_or_the_eos(tmp_path: Path) -> None:
    """SmolLM2's three decisions: EOS ends a turn, id 0 ends a document and is UNK too."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    folder = save(tokenizer, tmp_path, bos_token=None, eos_token={"content": "<|im_end|>"}, unk_token="<|endoftext|>")
    default = load_tokenizer(folder, IndexSettings()).identity
    named = load_tokenizer(folder, IndexSettings(eod_token="<|endoftext|>")).identity
    assert default.eod_id == default.eos_id == named.eos_id == tokenizer.token_to_id("<|im_end|>")
    assert named.eod_id == tokenizer.token_to_id("<|endoftext|>")
    assert default.fingerprint != named.fingerprint
    with pytest.raises(UserError, match=r"'<\|endoftxt\|>' is not in the vocabulary; did you mean '<\|endoftext\|>'"):
        load_tokenizer(folder, IndexSettings(eod_token="<|endoftxt|>"))


def test_unknown_character_that_would_end_the_document_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<eod>": 0, "word": 1, "</s>": 2}, unk_token="<eod>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<eod>"])
    ours = load_tokenizer(save(tokenizer, tmp_path, bos_token=None, eos_token="<eod>", unk_token="<eod>"), RAW)
    assert encode_batch(ours, ["word"])[0].tolist() == [1]
    with pytest.raises(UserError, match="text 1: an unknown character would become a control token"):
        encode_batch(ours, ["word", "word unknown"])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json, .* in it; give a Hugging Face directory"):
        load_tokenizer(tmp_path, IndexSettings())
    save(special(byte_level()), tmp_path, bos_token=None, eos_token=None)
    with pytest.raises(UserError, match="names no eos_token"):
        load_tokenizer(tmp_path, IndexSettings())
    with pytest.raises(UserError, match="names no bos_token"):
        load_tokenizer(tmp_path, IndexSettings(prepend_bos=True, append_eod=False))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path, IndexSettings())


def test_another_tokenizer_is_told_apart(tmp_path: Path) -> None:
    folder = save(special(byte_level()), tmp_path / "one")
    identity = load_tokenizer(folder, IndexSettings()).identity
    check_tokenizer(folder, identity, "dataset")
    other = save(special(byte_level([("a", "b")])), tmp_path / "two")
    with pytest.raises(UserError, match="dataset: was written with another tokenizer"):
        check_tokenizer(other, identity, "dataset")
