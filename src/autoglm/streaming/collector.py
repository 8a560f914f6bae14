"""source ─► broker. The position is the broker's: what it does not hold is read again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autoglm.contracts.change_event import ChangeBatch
from autoglm.errors import CancelledError
from autoglm.plugins.kinds import Broker, Source


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
    on_new_log: Callable[[], None] = lambda: None,
    follow: bool = False,
) -> Collected:
    """Append what the source shows now, batch by batch, each with its position; with `follow` also
    what changes later, until cancelled, where the source can listen (else it reads once).

    The source is told what is stored. `on_batch` is told the number of events so far; `on_new_log`
    is called where the broker holds nothing of the source, before anything is read. Raises:
    SourceError, StorageError, CancelledError (what was appended stays).
    """
    acknowledge = getattr(source, "acknowledge", None)
    epoch = broker.new_epoch(topic, source.name)
    # Only now: the one before may have been killed inside a transaction, which the takeover ends.
    position = broker.position(topic, source.name)
    if not position:
        on_new_log()
    events = batches = 0
    for batch in _batches(source, position, cancel, follow):
        if cancel.is_set():
            raise CancelledError("collecting was stopped.", next_step="The next call goes on.")
        broker.append(topic, batch, producer=source.name, epoch=epoch)
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
