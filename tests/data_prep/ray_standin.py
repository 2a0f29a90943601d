"""A stand-in for ray: actors that do what a test says, on a cluster with room for so many, in a fixed order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar


class RayError(Exception):
    """Also what is heard of an actor whose process has died."""


class RayTaskError(RayError):
    """A call has raised `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"Traceback\n  of two lines\n{cause!r}")
        self.cause = cause


@dataclass(eq=False)
class Actor:
    """`place` is its GPU, None while the cluster has no room for it."""

    ray: StandIn
    place: int | None = None
    is_dead: bool = False

    def __post_init__(self) -> None:
        self.ready = SimpleNamespace(remote=partial(Call, self, None))
        self.work_off = SimpleNamespace(remote=partial(Call, self))


@dataclass(eq=False)
class Call:
    """Of an actor, for its engine (`shard` None) or a shard."""

    actor: Actor
    shard: int | None


@dataclass
class StandIn:
    """`room` tells how many actors the cluster holds after so many answers; on a place that it has lost, actors die.

    `make(place)`, which may give the place a name, and `work(place, shard)` may raise; `seconds(place, shard)` orders
    answers that are waited for.  `patience` is how often nothing may have happened in the time that is waited.  `done`
    are shards with their places, `most_held` the most that an actor had at once.
    """

    room: Callable[[int], int]
    make: Callable[[int], str | None] = lambda place: None
    work: Callable[[int, int], object] = lambda place, shard: None
    seconds: Callable[[int, int | None], float] = lambda place, shard: 0.0
    patience: int = 0
    actors: list[Actor] = field(default_factory=list)
    done: list[tuple[int, int]] = field(default_factory=list)
    answers: int = 0
    most_held: int = 0
    exceptions: ClassVar = SimpleNamespace(RayError=RayError)

    def actor(self) -> Actor:
        self.actors.append(Actor(self))
        return self.actors[-1]

    def kill(self, actor: Actor) -> None:
        actor.is_dead = True

    def wait(self, calls: Sequence[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        """The first that has an answer, if any has."""
        self._place()
        self.most_held = max(self.most_held, *Counter(call.actor for call in calls).values())
        heard = [call for call in calls if call.actor.is_dead or call.actor.place is not None]
        if not heard and self.patience:
            self.patience, self.answers = self.patience - 1, self.answers + 1
            return [], list(calls)
        assert heard, f"it waits for ever, with {self.done} done"
        return [min(heard, key=self._when)], []

    def get(self, call: Call) -> Any:
        self.answers += 1
        place = call.actor.place
        if call.actor.is_dead:
            raise RayError("The actor died\n  unexpectedly")
        assert place is not None
        try:
            if call.shard is None:
                return self.make(place) or f"gpu {place}"
            self.work(place, call.shard)
        except RayError:
            call.actor.is_dead = True
            raise
        except Exception as error:
            raise RayTaskError(error) from error
        self.done.append((call.shard, place))
        return {"documents": 1}

    def _place(self) -> None:
        room = range(self.room(self.answers))
        for actor in self.actors:
            actor.is_dead = actor.is_dead or (actor.place is not None and actor.place not in room)
        for actor in self.actors:
            free = set(room) - {each.place for each in self.actors if not each.is_dead}
            if free and actor.place is None and not actor.is_dead:
                actor.place = min(free)

    def _when(self, call: Call) -> float:
        return 0.0 if call.actor.place is None else self.seconds(call.actor.place, call.shard)
