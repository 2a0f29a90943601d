"""On several ranks, 2 processes: Hugging Face directories read under several layouts, saved, and exported again.

    torchrun round_trip_worker.py '{"name": [HF_DIRECTORY, [layout, ...]], ...}' OUT

Each model is saved as OUT/NAME-LAYOUT.checkpoint, fp32, from each layout; OUT/NAME-LAYOUT is its export.  Of one
process: `import` is `import_hf`; `scratch` is that checkpoint with a card that names no directory, exported with the
tokenizer of one; `extra_state` is that checkpoint loaded into layers with an extra state, saved, loaded into layers
without, and saved again.

OUT/RANK.json says what each rank read of each: bytes handed over, and pages touched [bytes]; or its error; and the
signatures of what stream.py takes of torch.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_prep.errors import UserError
from megatron_ipt.architecture import padded_vocab_size
from megatron_ipt.convert import load_hf as loading
from megatron_ipt.convert.export_hf import export_hf
from megatron_ipt.convert.families import read_architecture
from megatron_ipt.convert.import_hf import import_hf
from megatron_ipt.convert.models import open_model
from megatron_ipt.convert.safetensors_directory import SafetensorsDirectory
from megatron_ipt.mcore import checkpoint as checkpoints
from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import layers, parallel, stream
from megatron_ipt.mcore import model as models
from megatron_ipt.settings import ModelSettings, TrainSettings

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor_model_parallel_size": 2},
    "pp2": {"pipeline_model_parallel_size": 2},
}


class Counted(SafetensorsDirectory):
    """Counts the bytes of the slices it hands over, and keeps its files mapped so that their pages can be counted."""

    latest: Counted

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.bytes = 0
        Counted.latest = self

    def slice(self, name: str, expected: tuple[int, ...]) -> Any:
        return _Slice(self, super().slice(name, expected))

    def pages(self) -> int:
        """What this process has touched of the files mapped here [bytes]."""
        text = Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace")
        parts = re.findall(r"\.safetensors\n(?:Size|KernelPageSize|MMUPageSize).*\n(?:.*\n)*?Rss: +(\d+) kB", text)
        return sum(map(int, parts)) * 1024


class _Slice:
    def __init__(self, source: Counted, inner: Any) -> None:
        self._source, self._inner = source, inner

    def __getitem__(self, key: Any) -> Any:
        found = self._inner[key]
        self._source.bytes += found.nbytes
        return found


def save(directory: Path, layout: str, out: Path) -> dict[str, int]:
    """Read `directory` under `layout` and save it; returns what this rank read."""
    common: dict[str, Any] = {"global_batch_size": 1, "seq_length": 64, "train_iters": 1, "lr": 1e-3, "bf16": False}
    train = TrainSettings(**common, **LAYOUTS[layout])
    architecture = read_architecture(directory)
    with parallel.model_parallel(train):
        vocab_size = padded_vocab_size(architecture, ModelSettings(), train)
        chunks = models.build(architecture, configs.transformer_config(architecture, train), train, vocab_size)
        loading.load_hf(chunks, directory, architecture)
        read = {"bytes": Counted.latest.bytes, "pages": Counted.latest.pages()}
        card = checkpoints.RunCard(0, 0, architecture, vocab_size, "", str(directory), {}, {})
        checkpoints.save(out, card, chunks, None)
    return read


class NormWithState(layers.RMSNorm):
    """Transformer Engine's norm has an extra state that the local one has not: an empty tensor, without FP8."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        assert state.numel() == 0


def save_again(checkpoint: Path, out: Path, load_hf: str) -> None:
    with open_model(checkpoint, bf16=False) as opened:
        card = checkpoints.RunCard(0, 0, opened.architecture, opened.vocab_size, "", load_hf, {}, {})
        checkpoints.save(out, card, opened.chunks, None)


def through_layers_with_states(checkpoint: Path, out: Path, load_hf: str) -> None:
    plain, layers.RMSNorm = layers.RMSNorm, NormWithState  # type: ignore[misc]
    try:
        save_again(checkpoint, out.with_name(out.name + ".between"), load_hf)
    finally:
        layers.RMSNorm = plain  # type: ignore[misc]
    save_again(out.with_name(out.name + ".between"), out, load_hf)


def alone(directory: Path, layout: str, out: Path) -> None:
    """What needs one process of `layout`, then the export of its checkpoint."""
    checkpoint = out.with_name(out.name + ".checkpoint")
    imported = out.with_name(out.name.removesuffix(layout) + "import.checkpoint")
    if layout == "import":
        import_hf(directory, checkpoint, bf16=False)
    elif layout == "scratch":
        save_again(imported, checkpoint, "")
    elif layout == "extra_state":
        through_layers_with_states(imported, checkpoint, str(directory))
        export_hf(checkpoint.with_name(checkpoint.name + ".between"), out.with_name(out.name + "_between"))
    if checkpoint.exists():
        export_hf(checkpoint, out, tokenizer=directory if layout == "scratch" else None)


def tried(directory: Path, layout: str, out: Path) -> dict[str, Any]:
    try:
        return save(directory, layout, out)
    except UserError as error:
        return {"error": str(error)}


def signatures() -> dict[str, str]:
    """Of what stream.py calls of torch's checkpoints, or takes the place of."""
    reader, planner = stream.dcp.FileSystemReader, stream.dcp.DefaultLoadPlanner
    used = [stream.create_read_items_for_chunk_list, stream.dcp.FileSystemWriter, stream.dcp.save]
    used += [reader.read_data, reader.set_up_storage_reader, planner.resolve_tensor, planner.commit_tensor]
    used += [stream.dcp.DefaultSavePlanner.resolve_data]
    return {part.__qualname__: " ".join(inspect.signature(part).parameters) for part in used}


def main() -> None:
    cases, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    told: dict[str, Any] = {"signatures": signatures()}
    loading.SafetensorsDirectory = Counted  # type: ignore[misc]
    with parallel.distributed():
        rank = dist.get_rank()
        for name, (directory, layouts) in cases.items():
            for layout in layouts:
                if layout in LAYOUTS:
                    told[f"{name}-{layout}"] = tried(Path(directory), layout, out / f"{name}-{layout}.checkpoint")
    (out / f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        del os.environ[variable]
    # each rank alone now, with every second model
    for name, (directory, layouts) in list(cases.items())[rank::2]:
        for layout in layouts:
            alone(Path(directory), layout, out / f"{name}-{layout}")


if __name__ == "__main__":
    main()
