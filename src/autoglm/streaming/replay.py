"""Dead letters that still wait, and their way back through the processors.

A dead letter waits until a row of the same key and version is in the table. Replaying appends its
event to the broker again: what has changed since (a processor, a schema) decides anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent
from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.errors import AutoGLMError
from autoglm.observability.tracing import new_traceparent
from autoglm.plugins.kinds import Broker

PRODUCER = "dead-letters"


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A dead letter that nothing has replaced: the newest of its key and version."""

    key: str
    code: str
    cause: str
    raw: str
    version: int
    source: str
    partition: int
    offset: int
    traceparent: str
    committed_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """`lost`: events of which only the beginning is kept; the source still has the row."""

    events: int
    lost: tuple[str, ...]


def waiting(table: DeltaFeatureTable) -> list[Waiting]:
    """Dead letters without a row of their key that is as new, in the order in which they died."""
    newest: dict[tuple[str, int], Waiting] = {}
    for row in table.dead_events().to_pylist():
        letter = Waiting(
            key=row["_key"],
            code=row["_code"],
            cause=row["_cause"],
            raw=row["_raw"] or "null",
            version=row["_version"],
            source=row["_source"],
            partition=row["_partition"],
            offset=row["_offset"],
            traceparent=row["_trace"],
            committed_at=row["_committed_at"],
        )
        known = newest.get((letter.key, letter.version))
        if known is None or known.offset < letter.offset:
            newest[letter.key, letter.version] = letter
    stored = table.newest_versions(sorted({key for key, _ in newest}))
    # A row as new came after it, or is it; an older one died again has been replaced too.
    still = [x for x in newest.values() if stored.get(x.key, -1) < x.version]
    return sorted(still, key=lambda x: (x.partition, x.offset))


def replay(letters: Sequence[Waiting], broker: Broker, *, topic: str, project: str) -> Replayed:
    """Append their events again, each once whoever asks how often: the position names all that were
    replayed. One that dies again is another letter, at another offset. An event keeps the source
    that gave it; the batch has a position of its own, and moves no source's. Raises: StorageError.
    """
    epoch = broker.new_epoch(topic, PRODUCER)
    done = _places(broker.position(topic, PRODUCER))
    events, lost = [], []
    for letter in letters:
        if (letter.partition, letter.offset) in done:
            continue
        event = _stored(letter, broker, topic) or _from_raw(letter, project)
        if event is None:
            lost.append(letter.key)
        else:
            events.append(event)
            done.add((letter.partition, letter.offset))
    if events:
        batch = ChangeBatch(
            project=project,
            source=PRODUCER,
            events=tuple(events),
            position=json.dumps(sorted(done), separators=(",", ":")),
            traceparent=new_traceparent(),
        )
        broker.append(topic, batch, producer=PRODUCER, epoch=epoch)
    return Replayed(events=len(events), lost=tuple(lost))


def _places(position: str) -> set[tuple[int, int]]:
    """(partition, offset) of the letters that were replayed. Once a digest stood here."""
    try:
        return {(int(number), int(offset)) for number, offset in json.loads(position or "[]")}
    except (ValueError, TypeError):
        return set()


def _stored(letter: Waiting, broker: Broker, topic: str) -> ChangeEvent | None:
    """The event as it came, while the broker has it."""
    try:
        fetched = broker.fetch(topic, letter.partition, letter.offset, max_events=1)
    except AutoGLMError:
        return None
    if fetched is None or fetched.events[0].offset != letter.offset:
        return None
    return fetched.events[0]


def _from_raw(letter: Waiting, project: str) -> ChangeEvent | None:
    """The event as its dead letter says it; `null` is a delete."""
    try:
        row = json.loads(letter.raw)
    except ValueError:
        return None  # only the beginning was kept
    if row is not None and not isinstance(row, dict):
        return None
    return ChangeEvent(
        project=project,
        source=letter.source,
        key=letter.key,
        op="delete" if row is None else "upsert",
        version=letter.version,
        row=row or {},
        committed_at=letter.committed_at,
    )
