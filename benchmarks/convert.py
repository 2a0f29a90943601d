#!/usr/bin/env python3
"""Memory and time of `ipt convert import` and `export` by number of layers, on the shapes of a 70B model.

    python benchmarks/convert.py --work runs/convert --out docs/benchmarks/convert.json --tables   (minutes, 28 GB)

The Hugging Face directory is made by construction: a header and a file without blocks, so all weights are zero.  Each
verb runs as its function in this process, after both ran on a tiny model.  Memory is what the process has that is no
page of a file (anonymous): its highest value within the verb less that before it, asked for every 5 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "70b": {"hidden": 8192, "ffn": 28672, "heads": 64, "groups": 8, "vocabulary": 128256},
    "512": {"hidden": 512, "ffn": 1376, "heads": 8, "groups": 8, "vocabulary": 509, "bytes": 4},
    "tiny": {"hidden": 64, "ffn": 176, "heads": 8, "groups": 4, "vocabulary": 512},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the models; emptied")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--shape", choices=SHAPES, default="70b")
    parser.add_argument("--layers", type=int, nargs="*", default=[1, 3])
    parser.add_argument("--tables", action="store_true", help="print the table of the figures")
    options = parser.parse_args()
    convert(options.work / "first", "tiny", 1)
    found = [row for layers in options.layers for row in convert(options.work, options.shape, layers)]
    text = json.dumps(found, indent=2)
    print(table(found) if options.tables else text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def convert(work: Path, shape: str, layers: int) -> list[dict[str, Any]]:
    """Both verbs on a model of `layers` layers: what each took."""
    from megatron_ipt.convert.export_hf import export_hf
    from megatron_ipt.convert.import_hf import import_hf

    shutil.rmtree(work, ignore_errors=True)
    whole, a_layer = write_model(work / "hf", SHAPES[shape], layers)
    bf16 = SHAPES[shape].get("bytes", 2) == 2
    common = {"shape": shape, "layers": layers, "model_bytes": whole, "layer_bytes": a_layer}
    rows = [
        {**common, "verb": "import", **measured(lambda: import_hf(work / "hf", work / "checkpoint", bf16=bf16))},
        {**common, "verb": "export", **measured(lambda: export_hf(work / "checkpoint", work / "exported"))},
    ]
    shutil.rmtree(work)
    return rows


def write_model(folder: Path, shape: dict[str, int], layers: int) -> tuple[int, int]:
    """A Hugging Face directory of zeros that takes no room on the disk; (bytes of its weights, of a layer's)."""
    width, of_weight = shape["hidden"] // shape["heads"], shape.get("bytes", 2)
    hidden, rows = shape["hidden"], {"q": shape["hidden"], "k": shape["groups"] * width, "v": shape["groups"] * width}
    each = {f"self_attn.{name}_proj": [count, hidden] for name, count in rows.items()}
    each |= {"self_attn.o_proj": [hidden, hidden], "mlp.down_proj": [hidden, shape["ffn"]]}
    each |= {f"mlp.{name}_proj": [shape["ffn"], hidden] for name in ("gate", "up")}
    each |= {"input_layernorm": [hidden], "post_attention_layernorm": [hidden]}
    tensors = {f"{name}.weight": [shape["vocabulary"], hidden] for name in ("model.embed_tokens", "lm_head")}
    tensors |= {"model.norm.weight": [hidden]}
    tensors |= {f"model.layers.{i}.{name}.weight": size for i in range(layers) for name, size in each.items()}
    header: dict[str, Any] = {}
    end = 0
    for name, size in tensors.items():
        begin, end = end, end + of_weight * size[0] * (size[1] if len(size) > 1 else 1)
        header[name] = {"dtype": "BF16" if of_weight == 2 else "F32", "shape": size, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    config = {"model_type": "llama", "num_hidden_layers": layers, "hidden_size": hidden, "rms_norm_eps": 1e-5}
    config |= {"intermediate_size": shape["ffn"], "num_attention_heads": shape["heads"], "dtype": "bfloat16"}
    config |= {"num_key_value_heads": shape["groups"], "vocab_size": shape["vocabulary"], "rope_theta": 500000.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    of_layers = sum(
        value["data_offsets"][1] - value["data_offsets"][0] for key, value in header.items() if ".0." in key
    )
    return end, of_layers


def measured(action: Callable[[], Any]) -> dict[str, float]:
    """Seconds of `action`, and anonymous memory: before it, and the most within it [bytes]."""
    before, most, done = anonymous(), anonymous(), threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        action()
    finally:
        seconds = time.perf_counter() - began
        done.set()
        watcher.join()
    return {"seconds": seconds, "before_bytes": before, "grown_bytes": most - before}


def anonymous() -> int:
    """What this process holds that is no page of a file [bytes]."""
    resident, of_files = Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3]
    return (int(resident) - int(of_files)) * os.sysconf("SC_PAGE_SIZE")


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| verb | layers | weights GB | a layer GB | memory grown by GB | seconds |", "|---|---|---|---|---|---|"]
    for row in rows:
        sizes = (row[name] / 1e9 for name in ("model_bytes", "layer_bytes", "grown_bytes"))
        figures = [row["verb"], str(row["layers"]), *(f"{size:.2f}" for size in sizes), f"{row['seconds']:.0f}"]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
