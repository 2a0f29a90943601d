"""Every supported kind of tokenizer: the ids of its own library, and no text that spells a control token."""

from __future__ import annotations

import base64
import functools
import itertools
import tempfile
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
import tokenizer_kinds
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizer_kinds import KINDS, ORACLES, Kind, lines
from tokenizers_for_tests import encode_batch

from data_prep.indexing.tiktoken_file import SCHEMES
from data_prep.indexing.tokenizer import TextTokenizer, load_tokenizer
from data_prep.settings import IndexSettings

TEXT = {"prepend_bos": False, "append_eod": False}


@functools.cache
def made(name: str) -> tuple[Kind, TextTokenizer]:
    """A kind by name, trained once, and ours for it."""
    kind = KINDS[name](Path(tempfile.mkdtemp()))
    return kind, load_tokenizer(kind.path, IndexSettings(tiktoken_scheme=kind.scheme, **TEXT))


def ids(tokenizer: TextTokenizer, texts: list[str]) -> list[list[int]]:
    return [tokens.tolist() for tokens in encode_batch(tokenizer, texts)]


@pytest.mark.parametrize("name", ORACLES)
def test_ids_are_the_librarys_own(name: str) -> None:
    kind, ours = made(name)
    assert kind.encode is not None
    texts = [*lines(400, 2), "x" * 3000, " " * 300, *kind.control, "a" + "".join(kind.control) + " b"]
    for text, found in zip(texts, ids(ours, texts), strict=True):
        assert found == list(kind.encode(text)), repr(text)


@st.composite
def spelled(draw: st.DrawFn, control: list[str]) -> str:
    """Control tokens whole, cut, doubled and between other text."""
    name = st.sampled_from(control)
    cut = st.builds(lambda token, start, end: token[start:end], name, st.integers(0, 3), st.integers(1, 12))
    other = st.text(
        st.sampled_from("<|/s>▁ \n\t[a数😀\U0010ffff") | st.characters(exclude_categories=["Cs"]), max_size=4
    )
    return "".join(draw(st.lists(name | cut | other, max_size=8)))


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_text_spells_a_control_token(name: str, data: st.DataObject) -> None:
    kind, ours = made(name)
    text = data.draw(spelled(list(kind.control)))
    (found,) = ids(ours, [text])
    assert not set(kind.control.values()) & set(found)
    if kind.decode is not None:
        assert kind.decode(found) == text


@pytest.mark.parametrize("name", KINDS)
def test_control_tokens_are_the_ones_that_were_trained(name: str) -> None:
    """The test above would be blind with ids that do not stand for these tokens."""
    kind, ours = made(name)
    for token, index in kind.control.items():
        named = load_tokenizer(kind.path, IndexSettings(tiktoken_scheme=kind.scheme, eod_token=token))
        assert named.identity.eod_id == index < ours.identity.vocab_size


@pytest.mark.parametrize(
    ("name", "bos", "eos"),
    [
        ("sentencepiece_bpe", "<s>", "</s>"),
        ("sentencepiece_bare", None, "</s>"),
        ("llama3", "<|begin_of_text|>", "<|end_of_text|>"),
        ("llama4", "<|begin_of_text|>", "<|end_of_text|>"),
        ("cl100k_base", None, "<|endoftext|>"),
    ],
)
def test_bos_and_eod_by_the_models_own_rule(name: str, bos: str | None, eos: str) -> None:
    kind, _ = made(name)
    assert kind.encode is not None
    tokens = encode_batch(load_tokenizer(kind.path, IndexSettings(tiktoken_scheme=kind.scheme)), ["a cell"])[0].tolist()
    head = [] if bos is None else [kind.control[bos]]
    assert tokens == [*head, *kind.encode("a cell"), kind.control[eos]]


def test_a_config_beside_a_sentencepiece_model_may_take_bos_away(tmp_path: Path) -> None:
    (tmp_path / "m.model").write_bytes(made("sentencepiece_bpe")[0].path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    identity = load_tokenizer(tmp_path, IndexSettings()).identity
    assert (identity.bos_id, identity.prepend_bos) == (1, False)


@pytest.mark.parametrize("scheme", ["r50k_base", "cl100k_base", "o200k_base"])
def test_openais_control_ids_are_tiktokens(scheme: str) -> None:
    known = tokenizer_kinds.official(scheme, {})["special_tokens"]
    assert {token: SCHEMES[scheme].ranks + distance for token, distance in SCHEMES[scheme].control.items()} == known


def test_llamas_control_ids_are_the_published_ones() -> None:
    three, four = (
        {SCHEMES[name].ranks + at: token for token, at in SCHEMES[name].control.items()}
        for name in SCHEMES
        if name.startswith("llama")
    )
    assert (len(three), len(four)) == (256, 2048)
    published = {
        128000: "begin_of_text",
        128001: "end_of_text",
        128004: "finetune_right_pad_id",
        128006: "start_header_id",
    }
    published |= {128008: "eom_id", 128009: "eot_id", 128010: "python_tag", 128255: "reserved_special_token_245"}
    assert {index: three[index] for index in published} == {index: f"<|{name}|>" for index, name in published.items()}
    published = {200001: "end_of_text", 200005: "header_start", 200008: "eot", 200018: "finetune_right_pad"}
    published |= {200080: "image_start", 200090: "image", 200092: "patch", 201143: "reasoning_thinking_end"}
    assert {index: four[index] for index in published} == {index: f"<|{name}|>" for index, name in published.items()}
    assert list(itertools.islice(reversed(four), 1)) == [202047]


def test_a_tiktoken_word_may_have_a_rank_that_no_merges_reach(tmp_path: Path) -> None:
    """tiktoken looks a whole word up before it merges: 'abc' has a rank, 'ab' and 'bc' have none."""
    known = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    path = tmp_path / "r50k_base.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in known.items()))
    ours = load_tokenizer(path, IndexSettings(**TEXT))
    theirs = tiktoken.Encoding(
        "r", pat_str=tokenizer_kinds.pattern("r50k_base"), mergeable_ranks=known, special_tokens={}
    )
    assert ids(ours, ["abc", "xabc"]) == [[256], [*b"xabc"]]
    assert ids(ours, ["abc", "xabc"]) == theirs.encode_ordinary_batch(["abc", "xabc"])


def test_bytes_spelled_out_are_text_in_sentencepiece(tmp_path: Path) -> None:
    """Where merges would lead to a byte piece, the library does not take them."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(made("sentencepiece_bpe")[0].path.read_bytes())
    for piece in ("<", "0", "x", "<0", "<0x", "4", "1", ">", "41", "<0x41", "</", "s", "</s"):
        if piece not in {known.piece for known in proto.pieces}:
            proto.pieces.add(piece=piece, score=-10000.0 - len(piece), type=1)
    (tmp_path / "m.model").write_bytes(proto.SerializeToString())
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    texts = ["a <0x41> b", "x<0x41>y", "é<0x41>", "</s> <0x41></s>", "<0x411>"]
    assert ids(load_tokenizer(tmp_path, IndexSettings(**TEXT)), texts) == theirs.encode(texts)
