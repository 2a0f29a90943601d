"""What an engine of batches is asked together: the prompts of one round, longest first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine

from data_prep.readers import write_jsonl
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import synthesize
from data_prep.synthesis.engines import Request
from data_prep.synthesis.schedule import batches


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 9))
def test_batches_are_longest_first_and_have_every_place_once(lengths: list[int], size: int):
    found = batches([[7] * length for length in lengths], size)
    order = [place for batch in found for place in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in found[:-1]) and all(0 < len(batch) <= size for batch in found)
    for before, after in pairwise(order):
        assert lengths[before] > lengths[after] or (lengths[before] == lengths[after] and before < after)


def test_a_round_is_asked_in_batches_of_like_length(tmp_path: Path):
    """15 texts over 2 rounds: 8 chains, then the 7 that go on."""
    sizes = random.Random(1).sample(range(1, 40), 15)
    write_jsonl(tmp_path / "in.jsonl", [{"id": f"d{n}", "text": f"Text t{n} " + "x" * 9 * n} for n in sizes])
    calls: list[list[int]] = []

    def hear(requests: Sequence[Request]) -> None:
        calls.append([len(request.prompt) for request in requests])

    settings = SynthesizeSettings(max_new_tokens=50, max_model_len=4000, rounds=2)
    engine = ScriptedEngine(batch_size=3, before=hear)
    synthesize(settings, tmp_path / "in.jsonl", None, tmp_path / "c.jsonl", engine=engine)
    assert [len(call) for call in calls] == [3, 3, 2, 3, 3, 1]
    assert {request.follows for request in engine.requests[:8]} == {0}
    assert {request.follows for request in engine.requests[8:]} == {1}
    for asked in (calls[:3], calls[3:]):
        lengths = [length for call in asked for length in call]
        assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1]
