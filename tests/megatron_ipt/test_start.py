"""The start of training reads every pack table whole, each on one of the ranks; a damaged one is told on all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import run_ranks

from data_prep.blend import plan, read_blend
from data_prep.packing.table import HEADER
from data_prep.settings import BlendSettings

WORKER = Path(__file__).with_name("start_worker.py")
SOURCES = ("one", "two", "three")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> tuple[Path, list[dict[str, Any]]]:
    """Two blends of three sources, in one of which a number within the pack table of `two` was changed."""
    folder = tmp_path_factory.mktemp("start")
    for name in ("whole", "damaged"):
        (folder / name).mkdir()
        for size, source in enumerate(SOURCES, 2):
            write_dataset(folder / name / source, [[1, 2, 3, 4, 0]] * 20 * size)
        sources = {source: {"prefix": source, "weight": 1} for source in SOURCES}
        plan(BlendSettings(sources=sources, seq_length=8, period=16), folder / name, folder / name)
    (table,) = (folder / "damaged").glob("two.pack-*[0-9a-f]")
    content = bytearray(table.read_bytes())
    content[HEADER.size] ^= 1  # the first piece is of another document
    table.write_bytes(content)
    run_ranks(2, WORKER, folder, "whole", "damaged")
    return folder, [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_the_ranks_share_the_tables(found: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, ranks = found
    assert [rank["whole"]["fault"] for rank in ranks] == ["", ""]
    read = [rank["whole"]["read"] for rank in ranks]
    packs = {source.name: source.pack for source in read_blend(folder / "whole/blend.json").sources}
    # The largest first, in turn.
    assert read == [[packs["three"], packs["one"]], [packs["two"]]]


def test_a_damaged_table_is_one_line_on_every_rank(found: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, ranks = found
    (two,) = (s for s in read_blend(folder / "damaged/blend.json").sources if s.name == "two")
    line = f"{two.prefix.with_name(two.pack)}: damaged: its bytes do not fit the hash at its end; "
    line += "delete the file and run `ipt blend plan` again"
    assert [rank["damaged"]["fault"] for rank in ranks] == [line, line]
