"""source ─► broker. The position is the broker's: what it does not hold is read again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

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
    follow: bool = False,
) -> Collected:
    """Append what the source shows now, batch by batch, each with its position.

    `on_batch` is told the number of events so far. Raises: SourceError, StorageError,
    CancelledError (what was appended stays).
    """
    epoch = broker.new_epoch(topic, source.name)
    events = batches = 0
    position = broker.position(topic, source.name)
    listen = getattr(source, "follow", None) if follow else None
    changes = source.read(position) if listen is None else listen(position, cancel=cancel)
    for batch in changes:
        if cancel.is_set():
            raise CancelledError("collecting was stopped.", next_step="The next call goes on.")
        broker.append(topic, batch, producer=source.name, epoch=epoch)
        events, batches = events + len(batch.events), batches + 1
        if on_batch is not None:
            on_batch(events)
    return Collected(events=events, batches=batches)
