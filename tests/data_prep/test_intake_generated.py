"""In = kept + the sum of reasons, for files made by a seed, with every fault in them, of every kind."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from intake_cases import LIMIT, PACKED, count, jsonl, told, write_packed

from data_prep.intake import Drop, IntakeSettings, read, read_placed
from data_prep.intake.duplicates import Duplicates

SETTINGS = IntakeSettings(max_document_bytes=LIMIT)
INPUTS, SHORT = 1000, 40

# A cell of a table under "text", and how it is to be counted.
CELLS: list[tuple[bytes | None, str]] = [
    (None, "no_text"),
    (b"", "only_spaces"),
    (b" \n", "only_spaces"),
    (b"a\0", "nul_byte"),
    (b"\xff", "bad_utf8"),
    (b"x" * (LIMIT + 1), "too_long"),
    *[(f"good {number} ü".encode(), "kept") for number in range(8)],
]


def table(drawn: random.Random) -> tuple[pa.Table, Counter[str]]:
    chosen = [drawn.choice(CELLS) for _ in range(drawn.randint(1, 60))]
    column = pa.array([cell for cell, _ in chosen], pa.binary()).view(pa.string())
    columns: dict[str, Any] = {"text": column, "id": [drawn.choice(["a", None, str(n)]) for n in range(len(chosen))]}
    if drawn.random() < 0.3:
        columns["blob"] = [drawn.choice([b"\xff", None]) for _ in chosen]
    return pa.table(columns), Counter(kind for _, kind in chosen)


def jsonl_input(folder: Path, seed: int, drawn: random.Random) -> tuple[Path, Counter[str]]:
    content, expected = jsonl(seed)
    path = write_packed(folder, str(seed), drawn.choice(list(PACKED)), content)
    if path.suffix == ".jsonl" or drawn.random() < 0.7:
        return path, Counter(value if kind == "reason" else "kept" for kind, value in expected)
    # Cut short, a packed file gives a first part of its lines, and one drop for the rest.
    whole = told(read(path, SETTINGS))
    path.write_bytes(path.read_bytes()[: drawn.randint(1, path.stat().st_size - 1)])
    part = told(read(path, SETTINGS))
    assert whole == expected and part[:-1] == whole[: len(part) - 1] and part[-1] == ("reason", "broken_file")
    return path, Counter(value if kind == "reason" else "kept" for kind, value in part)


def table_input(folder: Path, seed: int, drawn: random.Random) -> tuple[Path, Counter[str]]:
    made, expected = table(drawn)
    if drawn.random() < 0.7:
        path = folder / f"{seed}.parquet"
        pq.write_table(made, path, row_group_size=drawn.randint(1, 40))
    else:
        path = folder / f"{seed}.set"
        datasets.Dataset(made).save_to_disk(str(path))
    return path, expected


def text_input(folder: Path, seed: int, drawn: random.Random) -> tuple[Path, Counter[str]]:
    path, (cell, kind) = folder / f"{seed}.txt", drawn.choice(CELLS)
    path.write_bytes(cell or b"")
    return path, Counter({kind if cell else "empty_file": 1})


def check(folder: Path, seeds: range) -> None:
    """Each input by itself, then all of them at once, without what has an id that came before."""
    inputs, total = list[Path](), Counter[str]()
    for seed in seeds:
        drawn = random.Random(seed)
        make = drawn.choice([jsonl_input, jsonl_input, jsonl_input, table_input, text_input])
        path, expected = make(folder, seed, drawn)
        assert count(read(path, SETTINGS)) == expected, f"seed {seed}"
        inputs.append(path)
        total += expected
    placed = list(read_placed(inputs, SETTINGS))
    assert Counter(item.reason if isinstance(item, Drop) else "kept" for _, item in placed) == total
    assert len({where for where, _ in placed}) == len(placed) == total.total()

    documents = [item for _, item in placed if not isinstance(item, Drop)]
    with Duplicates(folder / "duplicates", held_records=100) as duplicates:
        for document in documents:
            duplicates.add(document.id, document.text)
        repeated = {repeat.ordinal for repeat in duplicates.repeats()}
    kept = [document for ordinal, document in enumerate(documents) if ordinal not in repeated]
    assert [document.id for document in kept] == list({document.id: None for document in documents})
    assert len(kept) + len(repeated) + sum(total[reason] for reason in total if reason != "kept") == len(placed)


def test_nothing_is_lost(tmp_path: Path) -> None:
    check(tmp_path, range(SHORT))


@pytest.mark.long
def test_nothing_is_lost_of_a_thousand_inputs(tmp_path: Path) -> None:
    check(tmp_path, range(SHORT, SHORT + INPUTS))


# Reads each file named; a damaged one might end the process without an exception, in the library below.
READER = """
import sys
from data_prep.intake import IntakeSettings, read

for name in sys.argv[1:]:
    print(sum(1 for _ in read(name, IntakeSettings())))
"""


@pytest.mark.long
def test_parquet_with_wrong_bytes_anywhere_raises_nothing(tmp_path: Path) -> None:
    """Seeds 885, 1686, 2584 and 2619 once ended the process in the footer's histograms."""
    rows = [
        {"id": str(n), "text": "t" * (n % 50 + 1) + str(n), "metadata": {"n": n}, "l": ["a"] * (n % 3)}
        for n in range(300)
    ]
    wholes = []
    for compression in ("zstd", "snappy", "none"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "whole", compression=compression, row_group_size=100)
        wholes.append((tmp_path / "whole").read_bytes())
    paths = []
    for seed in (*range(1000), 1686, 2584, 2619):
        drawn = random.Random(seed)
        content = bytearray(drawn.choice(wholes))
        for _ in range(drawn.choice([1, 1, 2, 10, 200])):
            content[drawn.randrange(len(content))] = drawn.randrange(256)
        paths.append(tmp_path / f"{seed}.parquet")
        paths[-1].write_bytes(content)
    done = subprocess.run([sys.executable, "-c", READER, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == len(paths) and "0" not in done.stdout.split()
