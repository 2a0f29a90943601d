"""The weights of a Hugging Face directory: slices out of its safetensors files, and tensor by tensor into new ones.

The library's own writer takes a whole file's tensors at once.  The format is a length, a JSON header and the tensors'
bytes, so that a file of any size is written here with one tensor in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from data_prep.errors import UserError

INDEX: Final = "model.safetensors.index.json"
WHOLE: Final = "model.safetensors"
MAX_SHARD_BYTES: Final = 5 * 10**9
_DTYPES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_AGAIN: Final = "copy the directory again"

Shapes = Mapping[str, tuple[int, ...]]


class SafetensorsDirectory:
    """The tensors of `model.safetensors`, or else of the shards that `model.safetensors.index.json` lists.

    Where both are there, the first is read, as transformers does.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[Path, tuple[Any, frozenset[str]]] = {}
        self._file_of = {name: directory / file for name, file in self._listed().items()}

    def names(self) -> frozenset[str]:
        return frozenset(self._file_of)

    def slice(self, name: str, expected: tuple[int, ...]) -> Any:
        """A lazily read tensor; UserError if it is missing, not of the `expected` shape or not of floats."""
        file = self._file_of.get(name)
        if file is None:
            raise UserError(self.directory, f"tensor '{name}' is missing", _AGAIN)
        handle, names = self._handle(file)
        if name not in names:
            raise UserError(file, f"tensor '{name}' is missing, and {INDEX} says that it is there", _AGAIN)
        tensor = handle.get_slice(name)
        shape = tuple(tensor.get_shape())
        if shape != expected:
            problem = f"tensor '{name}' is {shape}, expected {expected}"
            raise UserError(file, problem, "use weights and config.json of one model, and no model.* that changes it")
        kind = tensor.get_dtype()
        if kind not in _DTYPES.values():
            problem = f"tensor '{name}' is {kind}, expected {', '.join(_DTYPES.values())}"
            mend = "save it in one of these" if kind == "F64" else "use the weights as they were before quantization"
            raise UserError(file, problem, mend)
        return tensor

    def _listed(self) -> dict[str, str]:
        """Tensor -> file."""
        index, whole = self.directory / INDEX, self.directory / WHOLE
        if whole.exists() or not self.directory.is_dir():
            return dict.fromkeys(self._handle(whole)[1], WHOLE)
        if not index.exists():
            problem = f"holds neither {WHOLE} nor {INDEX}"
            raise UserError(self.directory, problem, "save it with transformers' save_pretrained: no pickle is read")
        try:
            listed = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(index, "is no index of safetensors files", _AGAIN) from error
        if not all(isinstance(file, str) for file in listed.values()):
            raise UserError(index, "is no index of safetensors files", _AGAIN)
        return listed

    def _handle(self, file: Path) -> tuple[Any, frozenset[str]]:
        if file not in self._open:
            try:
                handle = safe_open(str(file), "pt")
            except (OSError, SafetensorError) as error:
                raise UserError(file, f"not readable as safetensors ({error})", _AGAIN) from error
            self._open[file] = handle, frozenset(handle.keys())
        return self._open[file]


def write(
    folder: Path,
    groups: Sequence[Shapes],
    dtype: torch.dtype,
    make: Callable[[int], Mapping[str, torch.Tensor]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write safetensors files, and their index where there are several, a group at a time.

    A group is what is made together: the names and shapes of its tensors here, the tensors by `make(its number)`.
    """
    sizes = [sum(_bytes(shape, dtype) for shape in group.values()) for group in groups]
    shards = plan(sizes, max_shard_bytes)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(names) > 1 else [WHOLE]
    for file, shard in zip(names, shards, strict=True):
        with (folder / file).open("wb") as out:
            out.write(_header([groups[number] for number in shard], dtype))
            for number in shard:
                made = make(number)
                for name in groups[number]:
                    out.write(made[name].to(dtype).contiguous().flatten().view(torch.uint8).numpy().data)
    if len(names) > 1:
        where = {name: file for file, shard in zip(names, shards, strict=True) for i in shard for name in groups[i]}
        content = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def plan(sizes: Sequence[int], most: int) -> list[list[int]]:
    """The numbers of `sizes` cut in their order into parts that sum to `most` or are one alone.  Pure."""
    shards: list[list[int]] = [[]]
    room = most
    for number, size in enumerate(sizes):
        if size > room and shards[-1]:
            shards.append([])
            room = most
        shards[-1].append(number)
        room -= size
    return shards


def _header(groups: Sequence[Shapes], dtype: torch.dtype) -> bytes:
    """u64 length, then JSON: each tensor's type, shape and place [bytes after the header]; padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in ((name, shape) for group in groups for name, shape in group.items()):
        begin, end = end, end + _bytes(shape, dtype)
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
