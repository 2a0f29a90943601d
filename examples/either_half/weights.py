#!/usr/bin/env python3
"""Weights changed at sample 200 of 400, from 5 : 5 to 6 : 4: what is drawn twice, and what is passed over?

    python examples/either_half/weights.py

Both sides keep one number at the change, the samples consumed: Megatron's BlendedDataset is made again with the new
weights, ours gets a phase more.  Every token is a number of its own, so a sample is known by its first one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from sides import megatron, numbered, table, write

from data_prep.blend import Blend, plan, read_blend
from data_prep.settings import BlendSettings
from megatron_ipt.data.stream import BlendStream

SEQ_LENGTH, CHANGE, SAMPLES = 64, 200, 400
BEFORE, AFTER = (5, 5), (6, 4)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefixes = [Path(folder) / source for source in ("domain", "general")]
        for place, prefix in enumerate(prefixes):
            write(prefix, numbered(1 + 400_000 * place, 500, (40, 160), seed=place))
        theirs, ours = with_megatron(prefixes), with_our_blend(prefixes)
    rows = zip(("samples after the change that were drawn before it", "samples passed over"), theirs, ours, strict=True)
    table(f"Weights 5 : 5, from sample {CHANGE} of {SAMPLES} on 6 : 4", rows)


def with_megatron(prefixes: list[Path]) -> tuple[int, int]:
    cache = prefixes[0].with_name("cache")
    before, after = (
        megatron(prefixes, [weight / 10 for weight in weights], SAMPLES, SEQ_LENGTH, cache)
        for weights in (BEFORE, AFTER)
    )
    drawn = [name(before[i]["tokens"]) for i in range(CHANGE)]
    drawn += [name(after[i]["tokens"]) for i in range(CHANGE, SAMPLES)]
    alone = [[name(part[k]["tokens"]) for k in range(len(part))] for part in after.datasets]
    return count(drawn, alone)


def with_our_blend(prefixes: list[Path]) -> tuple[int, int]:
    folder = prefixes[0].parent
    sources = {
        prefix.name: {"prefix": prefix, "weight": weight} for prefix, weight in zip(prefixes, BEFORE, strict=True)
    }
    plan(BlendSettings(sources=sources, seq_length=SEQ_LENGTH, period=10), folder / "blend")
    before = read_blend(folder / "blend" / "blend.json")
    phase = before.phases[0].model_copy(update={"first_sample": CHANGE, "shares": AFTER})
    appended = Blend.model_validate({**before.model_dump(), "phases": [*before.phases, phase]})
    appended.write(folder / "blend" / "appended.json")
    first, then = (BlendStream(folder / "blend" / file) for file in ("blend.json", "appended.json"))
    drawn = [name(first.sample(i).tokens) for i in range(CHANGE)]
    drawn += [name(then.sample(i).tokens) for i in range(CHANGE, SAMPLES)]
    straight = [first.sample(i) for i in range(2 * SAMPLES)]
    alone = [[name(s.tokens) for s in straight if s.source == prefix.name] for prefix in prefixes]
    return count(drawn, alone)


def name(tokens: Sequence[int]) -> int:
    """What tells a sample from any other: its first token that is no EOD."""
    return int(tokens[0]) or int(tokens[1])


def count(drawn: list[int], alone: list[list[int]]) -> tuple[int, int]:
    """(drawn twice, passed over) of the samples `drawn`, when `alone` is the order of each source by itself."""
    seen = set(drawn)
    passed = 0
    for order in alone:
        last = max(place for place, sample in enumerate(order) if sample in seen)
        passed += sum(sample not in seen for sample in order[:last])
    return len(drawn) - len(seen), passed


if __name__ == "__main__":
    main()
