"""Megatron's .bin/.idx layout, and the names of all files of a dataset; shared by readers and writers.

Source: megatron/core/datasets/indexed_dataset.py (`DType`, `_IndexWriter`).  `.bin` is the token
ids, C order, no header.  `.idx` is the header, then int32 lengths and int64 byte offsets of the
sequences, then int64 document boundaries, counted in sequences and starting with 0.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
IDX_VERSION = 1
# Magic, version, dtype code, sequences, boundaries (documents + 1).
HEADER = struct.Struct("<9sQBQQ")
# dtype code -> numpy's name, the kinds that can hold token ids; only uint16 and int32 are ever written.
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
DTYPE_CODES = {"int32": 4, "uint16": 8}

TokenDtype = Literal["uint16", "int32"]


def optimal_dtype(vocab_size: int) -> TokenDtype:
    """Megatron's rule (`DType.optimal_dtype`): uint16 below 65,500 ids, else int32."""
    return "uint16" if vocab_size < 65_500 else "int32"


def bin_path(prefix: Path) -> Path:
    """PREFIX.bin.  (`with_suffix` would eat a dot inside the prefix.)"""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """PREFIX.idx."""
    return prefix.with_name(prefix.name + ".idx")


def lineage_path(prefix: Path) -> Path:
    """PREFIX.lineage.parquet."""
    return prefix.with_name(prefix.name + ".lineage.parquet")


def spans_path(prefix: Path) -> Path:
    """PREFIX.spans."""
    return prefix.with_name(prefix.name + ".spans")


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file, uint8, read-only; an array made of it keeps the map alive.

    Errors: a UserError if there is none.  (An empty file cannot be mapped, and gives an empty array.)
    """
    if not path.is_file():
        raise UserError(path, "no such file", "write the dataset again with `ipt data index`")
    if path.stat().st_size == 0:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, mode="r").view(np.ndarray)


def forget_pages(array: np.ndarray) -> None:
    """Lets go of the memory that an array of `map_file` has been read into; it is read again where it is needed.

    The pages of a map count as memory of the process, so a pass over a large file would seem to hold it all.
    """
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
