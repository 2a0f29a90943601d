"""Drives rounds and batches over an engine: every text prompted once, whatever fails or is killed.

The batches of a round depend on its prompts only, and a batch that is not in the journal whole is
made again whole: so a resumed run generates in the same batches, and writes the same bytes, as one
that was never killed.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from data_prep.errors import UserError
from data_prep.records import AugmentedText
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.chains import ancestors, round_blocks
from data_prep.synthesis.engines import Completion, Engine
from data_prep.synthesis.journal import Journal
from data_prep.synthesis.progress import ProgressCallback, SynthesisProgress
from data_prep.synthesis.wire import Rejection, Wire, parse

logger = logging.getLogger(__name__)


@dataclass
class Synthesis:
    """State and result of a run over `texts` (numbered as in `chains.round_blocks`).

    `done` has every text prompted, with its pairs if it got any; `failed` says in the engine's own
    words why a text has no completion.
    """

    texts: Sequence[AugmentedText]
    wire: Wire
    engine: Engine
    journal: Journal
    settings: SynthesizeSettings
    demonstrations: Sequence[AugmentedText] = ()
    on_progress: ProgressCallback | None = None
    done: dict[int, AugmentedText] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    rejections: dict[int, list[Rejection]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def run(self) -> None:
        """Runs all rounds.

        Raises:
            UserError: every text of a round failed, so the engine as a whole does not work.
        """
        blocks = round_blocks(len(self.texts), self.settings.rounds)
        for number, block in enumerate(blocks, 1):
            prompts = {index: self._prompt(index, slots=len(blocks[0])) for index in block}
            for batch in batches(prompts, self.settings.batch_size):
                self._run_batch({index: prompts[index] for index in batch})
                self._report()
            if all(index in self.failed for index in block):
                problem = f"every text of round {number} failed ({self.failed[block[0]]})"
                raise UserError("synthesis engine", problem, "mend the engine and run again; finished texts are kept")

    def _prompt(self, index: int, slots: int) -> list[int]:
        """Demonstrations, then as many ancestors as fit (the oldest go first), then the text."""
        head = [token for shot in self.demonstrations for token in self.wire.example(shot)]
        opening = self.wire.opening(self.texts[index].text)
        shots = [self.wire.example(text) for text in ancestors(index, slots, self.done)]
        room = self.settings.max_model_len - self.settings.max_new_tokens - len(head) - len(opening)
        kept = newest_that_fit(shots, room)
        self.counts["shots"] += len(kept)
        self.counts["shots_dropped"] += len(shots) - len(kept)
        return head + [token for shot in kept for token in shot] + opening

    def _run_batch(self, prompts: Mapping[int, list[int]]) -> None:
        known = {index: self.journal.find(prompt) for index, prompt in prompts.items()}
        completions = {index: completion for index, completion in known.items() if completion is not None}
        if len(completions) < len(prompts):
            completions = self._generate(prompts)
            self.journal.add((prompts[index], completion) for index, completion in completions.items())
            self.counts["new_completion_tokens"] += sum(item.completion_tokens for item in completions.values())
        for index, completion in completions.items():
            self._take(index, completion)

    def _generate(self, prompts: Mapping[int, list[int]]) -> dict[int, Completion]:
        """Completions of a batch; when the engine fails, each prompt is tried once more by itself."""
        started = time.perf_counter()
        completions: dict[int, Completion] = {}
        try:
            completions = dict(zip(prompts, self.engine.generate(list(prompts.values())), strict=True))
        except Exception as error:  # an engine may raise anything; its words are kept
            logger.warning(
                "the engine failed on a batch of %d, each is tried by itself: %s", len(prompts), words(error)
            )
            for index, prompt in prompts.items():
                try:
                    (completions[index],) = self.engine.generate([prompt])
                except Exception as again:
                    self.failed[index] = words(again)
                    logger.warning("document %s failed: %s", self.texts[index].document_id, words(again))
        self.seconds += time.perf_counter() - started
        return completions

    def _take(self, index: int, completion: Completion) -> None:
        pairs, rejections = parse(completion.text)
        self.done[index] = replace(self.texts[index], pairs=tuple(pairs))
        self.rejections[index] = rejections
        self.counts["pairs"] += len(pairs)
        self.counts["prompt_tokens"] += completion.prompt_tokens
        self.counts["completion_tokens"] += completion.completion_tokens

    def _report(self) -> None:
        if self.on_progress is not None:
            finished = self.done.keys() | self.failed.keys()
            waiting = {text.document_id for index, text in enumerate(self.texts) if index not in finished}
            documents = {self.texts[index].document_id for index in finished} - waiting
            rate = self.counts["new_completion_tokens"] / self.seconds if self.seconds else 0.0
            progress = SynthesisProgress(len(finished), len(self.texts), len(documents), self.counts["pairs"], rate)
            self.on_progress(progress)


def batches(prompts: Mapping[int, Sequence[int]], size: int) -> list[list[int]]:
    """The prompts' keys, longest first so that a batch is padded little, `size` together."""
    order = sorted(prompts, key=lambda index: (-len(prompts[index]), index))
    return [order[start : start + size] for start in range(0, len(order), size)]


def newest_that_fit(shots: Sequence[list[int]], room: int) -> list[list[int]]:
    """The longest run of shots at the end whose tokens fit into `room`."""
    first = len(shots)
    while first > 0 and len(shots[first - 1]) <= room:
        first -= 1
        room -= len(shots[first])
    return list(shots[first:])


def words(error: Exception) -> str:
    """An error in its own words, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
