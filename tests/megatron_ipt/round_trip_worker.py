"""Run by torchrun, 2 processes: Hugging Face directories read under several layouts, saved, and exported again.

    torchrun round_trip_worker.py '{"name": [HF_DIRECTORY, [layout, ...]], ...}' OUT

Each model is saved as OUT/NAME-LAYOUT.checkpoint, fp32, from each layout; OUT/NAME-LAYOUT is its export.  The layout
`import` is `import_hf`.  OUT/RANK.json says what each rank read of each: bytes handed over, and pages touched [bytes];
or its error; and the signatures of what stream.py takes of torch.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_prep.errors import UserError
from megatron_ipt.architecture import padded_vocab_size
from megatron_ipt.convert import load_hf as loading
from megatron_ipt.convert.export_hf import export_hf
from megatron_ipt.convert.families import read_architecture
from megatron_ipt.convert.import_hf import import_hf
from megatron_ipt.convert.safetensors_directory import SafetensorsDirectory
from megatron_ipt.mcore import checkpoint as checkpoints
from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import model as models
from megatron_ipt.mcore import parallel, stream
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
                if layout != "import":
                    told[f"{name}-{layout}"] = tried(Path(directory), layout, out / f"{name}-{layout}.checkpoint")
    (out / f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        del os.environ[variable]
    # each rank alone now, with every second model
    for name, (directory, layouts) in list(cases.items())[rank::2]:
        for layout in layouts:
            checkpoint = out / f"{name}-{layout}.checkpoint"
            if layout == "import":
                import_hf(Path(directory), checkpoint, bf16=False)
            if checkpoint.exists():
                export_hf(checkpoint, out / f"{name}-{layout}")


if __name__ == "__main__":
    main()
