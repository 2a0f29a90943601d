"""ipt blend verify: the tokens that entered the model, by their checksums, against the data read again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from data_prep.blend.verify import Stretch
from megatron_ipt.cli.blend_runs import RunRecord

if TYPE_CHECKING:
    from megatron_ipt.data.stream import BlendStream


def spread(stretches: Sequence[Stretch], most: int) -> list[Stretch]:
    """Stretches of about `most` samples together, spread evenly over those with checksums; one at least."""
    recorded = [stretch for stretch in stretches if stretch.checksums is not None and stretch.stop > stretch.start]
    if not recorded or not most:
        return []
    each = sum(stretch.stop - stretch.start for stretch in recorded) / len(recorded)
    count = min(len(recorded), max(1, int(most / each)))
    places = sorted({round(place * (len(recorded) - 1) / max(1, count - 1)) for place in range(count)})
    return [recorded[place] for place in places]


def unlike_tokens(run: RunRecord, stretches: Sequence[Stretch]) -> Iterator[str]:
    """A line for each source of a stretch whose tokens were others than the blend's."""
    from megatron_ipt.data.stream import BlendStream

    if not stretches:
        return
    stream = BlendStream(run.blend_path)
    for stretch in stretches:
        expected = _checksums(stream, stretch)
        for name, told in (stretch.checksums or {}).items():
            if told != expected[name]:
                yield f"samples {stretch.start:,} to {stretch.stop:,}: the tokens of '{name}' were not the blend's"


def _checksums(stream: BlendStream, stretch: Stretch) -> Counter[str]:
    import torch

    from megatron_ipt.mcore.checksum import checksums

    found = Counter[str]()
    for index in range(stretch.start, stretch.stop):
        sample = stream.sample(index)
        found[sample.source] += int(checksums(torch.from_numpy(sample.tokens)[None]))
    return found
