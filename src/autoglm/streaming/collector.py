"""source ─► broker. The position is the broker's: what it does not hold is read again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autoglm.contracts.change_event import ChangeBatch
from autoglm.errors import CancelledError
from autoglm.plugins.kinds import Broker, Source
from autoglm.streaming.version_floor import RaisedPosition


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    events: int
    batches: int


def collect(
    source: Source,
    broker: Broker,
    *,
    topic: str,
    cancel: threading.Event,
    on_batch: Callable[[int], None] | None = None,
    newest_of: Callable[[str], int] = lambda _position: -1,
    follow: bool = False,
) -> Collected:
    """Append what the source shows now, batch by batch, each with its position; with `follow` also
    what changes later, until cancelled, where the source can listen (else it reads once).

    The source is told what is stored. `on_batch` is told the number of events so far. `newest_of`
    is asked, with the position that the broker holds and before anything is read, for the highest
    version that anybody gave: what comes is newer, also under a new name of the source.
    Raises: SourceError, StorageError, CancelledError (what was appended stays).
    """
    acknowledge = getattr(source, "acknowledge", None)
    epoch = broker.new_epoch(topic, source.name)
    # Only now: the one before may have been killed inside a transaction, which the takeover ends.
    position = broker.position(topic, source.name)
    known = RaisedPosition.read(position).above(newest_of(position))
    events = batches = 0
    for batch in _batches(source, known.position, cancel, follow):
        if cancel.is_set():
            raise CancelledError("collecting was stopped.", next_step="The next call goes on.")
        known, raised = known.after(batch)
        broker.append(topic, raised, producer=source.name, epoch=epoch)
        if acknowledge is not None:
            acknowledge(batch.position)
        events, batches = events + len(batch.events), batches + 1
        if on_batch is not None:
            on_batch(events)
    return Collected(events=events, batches=batches)


def _batches(
    source: Source, position: str, cancel: threading.Event, follow: bool
) -> Iterator[ChangeBatch]:
    if follow and hasattr(source, "follow"):
        batches: Iterator[ChangeBatch] = source.follow(position, cancel=cancel)
        return batches
    return source.read(position)
