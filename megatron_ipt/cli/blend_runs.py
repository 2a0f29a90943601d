"""What a run's folder says of its blend: which one it reads, how far it is, and what it recorded of its draws."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.blend.file import read_blend
from data_prep.blend.model import Blend
from data_prep.blend.verify import Stretch
from data_prep.errors import UserError
from megatron_ipt.paths import RunPaths


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run.  `consumed` samples at the newest record; `saved`, those of the newest checkpoint, None without one.

    `stretches` are what each line of metrics.jsonl records: the steps since the line before.  `blend_hash` is what
    the newest checkpoint was trained on.
    """

    folder: Path
    blend_path: Path
    blend: Blend
    consumed: int
    saved: int | None
    blend_hash: str | None
    stretches: tuple[Stretch, ...]


def read_run(folder: Path, blend: Path | None = None) -> RunRecord:
    """The record of a finished or running run in `folder`, of `ipt run` or with a train.save of its own.

    Its blend is `blend`, else what the newest checkpoint's recipe names, else the folder's own.
    Errors: a UserError for a folder without metrics, and for lines that are not a run's.
    """
    from megatron_ipt.training.metrics import read_metrics

    paths = RunPaths(folder)
    metrics = next((path for path in (paths.metrics, folder / paths.metrics.name) if path.is_file()), None)
    if metrics is None:
        raise UserError(folder, "no train/metrics.jsonl: not a run's folder, or not begun", "give the run's output_dir")
    card = _newest_card(paths.checkpoints if metrics == paths.metrics else folder)
    path = blend or _blend_of(paths, card)
    steps = [row for row in read_metrics(metrics) if row.get("kind") in ("train", "skipped")]
    stretches = tuple(_stretch(row, metrics) for row in steps)
    saved = int(card["consumed_samples"]) if card else None
    consumed = max([stretch.stop for stretch in stretches] + [saved or 0])
    told = str(card["blend_hash"]) if card else None
    return RunRecord(folder, path, read_blend(path), consumed, saved, told, stretches)


def _blend_of(paths: RunPaths, card: Mapping[str, Any] | None) -> Path:
    """What the recipe of the newest checkpoint names, else its output_dir's or the folder's own."""
    recipe = card["recipe"] if card else {}
    named = recipe.get("train", {}).get("blend")
    places = [Path(named)] if named else [paths.blend, RunPaths(Path(recipe.get("output_dir", "."))).blend]
    for place in places:
        if place.is_file():
            return place
    raise UserError(places[0], "no such blend", "say which one the run reads: --blend PATH")


def _newest_card(checkpoints: Path) -> dict[str, Any] | None:
    """run_card.json of the checkpoint that a resumed run would go on from."""
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    if not tracker.is_file():
        return None
    path = checkpoints / f"iter_{int(tracker.read_text(encoding='utf-8')):07d}" / "run_card.json"
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(path, f"not a checkpoint's card ({error})", "look into the run's checkpoints") from error
    return card


def _stretch(row: Mapping[str, Any], path: Path) -> Stretch:
    """The samples of one line: it tells how many each source gave, and how many samples the run has consumed."""
    try:
        stop, drawn = int(row["consumed_samples"]), {str(name): int(count) for name, count in row["samples"].items()}
        checksums = {str(name): int(told) for name, told in row["checksums"].items()} if "checksums" in row else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"a train line without its samples ({error!r})"
        raise UserError(path, problem, "give the metrics of a run of this version") from error
    return Stretch(stop - sum(drawn.values()), stop, drawn, checksums)
