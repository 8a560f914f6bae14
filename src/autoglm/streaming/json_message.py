"""A change as a message that programs of others can read: key = the row's key, value = JSON.

{"op": "upsert", "version": 7, "committed_at": "2026-01-02T03:04:05.678901+00:00",
 "source": "sql/articles", "trace": "00-…", "row": {"id": 3, "text": "…"}}

Source and trace stand in the message's headers too, for tools (there the source is the producer's,
whose position it is); here they cost a reader no call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import MAXYEAR, MINYEAR, UTC, datetime, timedelta
from functools import partial
from typing import Any

from autoglm.contracts.change_event import ChangeEvent
from autoglm.contracts.event_columns import EventColumns, placed, table_of
from autoglm.streaming.json_columns import read_messages

# Of a message that is none of ours the beginning is kept, under this column.
MALFORMED, MALFORMED_BYTES = "malformed", 65_536
# Below so many messages Arrow's reader is not worth its start.
FEW = 32
OPS, FOUND_DEAD = frozenset({"upsert", "delete", "dead"}), frozenset({"raw", "cause", "code"})


def to_key(event: ChangeEvent) -> bytes:
    return event.key.encode("utf-8", "surrogatepass")


def to_value(event: ChangeEvent, traceparent: str) -> bytes:
    """The source is the event's own: a replayed dead letter keeps that which gave it."""
    document = {
        "op": event.op,
        "version": event.version,
        "committed_at": event.committed_at.isoformat(),
        "source": event.source,
        "trace": traceparent,
        "row": event.row,
    }
    try:
        return json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # broken UTF-8 passes through and is judged by the processor
        return json.dumps(document).encode()


def too_large(event: ChangeEvent, num_bytes: int, max_bytes: int) -> ChangeEvent:
    """In the place of an event whose message nobody takes: its beginning, as one found dead."""
    raw = json.dumps(event.row, ensure_ascii=False, default=str)
    cause = f"as a message it has {num_bytes:,} bytes; the broker's topic takes {max_bytes:,}"
    row = {
        "raw": raw[: min(MALFORMED_BYTES, max_bytes // 8)],
        "cause": cause,
        "code": "data.row_too_large",
    }
    return replace(event, op="dead", row=row)


def to_events(
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
    *,
    partition: int,
    offsets: Sequence[int],
    project: str,
) -> Sequence[ChangeEvent]:
    """What was sent, as columns where that is exact. A message that is none of ours comes as a row
    without the project's columns, which the product's own checks make a dead letter.
    """
    texts = [_text(key or b"") for key in keys]
    place = partial(placed, partition=partition, offsets=offsets)
    read = read_messages(texts, values) if len(values) >= FEW else None
    if read is not None:
        whole = place(read.table, source=read.sources, traceparent=read.traces)
        return EventColumns(whole, project=project)
    try:
        documents = json.loads(b"[" + b",".join(value or b"0" for value in values) + b"]")
    except ValueError:
        documents = []
    said = _said(documents) if len(documents) == len(values) else None
    if said is None:
        said = _said([_document(value) for value in values])
        assert said is not None, "what is none of ours was put into our form"
    table = table_of(texts, said.ops, said.versions, said.moments, said.rows)
    if table is not None:
        whole = place(table, source=said.sources, traceparent=said.traces)
        return EventColumns(whole, project=project)
    columns = (said.ops, said.versions, said.moments, said.rows, said.sources, said.traces)
    return [
        ChangeEvent(
            project=project,
            source=source,
            key=key,
            op=op,
            version=version,
            row=row,
            committed_at=moment,
            partition=partition,
            offset=offset,
            traceparent=trace,
        )
        for key, offset, op, version, moment, row, source, trace in zip(
            texts, offsets, *columns, strict=True
        )
    ]


def _text(key: bytes) -> str:
    try:
        return key.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # of another program: the processor makes it a dead letter
        return key.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class _Said:
    """Messages, column by column."""

    ops: list[Any]
    versions: list[int]
    moments: list[datetime]
    rows: list[dict[str, Any]]
    sources: list[str]
    traces: list[str]


def _said(documents: Sequence[Any]) -> _Said | None:
    """None when one is none of ours. All at once: a look at each costs a fifth of a read."""
    try:
        said = _Said(
            [d["op"] for d in documents],
            [d["version"] for d in documents],
            [datetime.fromisoformat(d["committed_at"]) for d in documents],
            [d["row"] for d in documents],
            [d["source"] for d in documents],
            [d["trace"] for d in documents],
        )
        has_known_ops = set(said.ops) <= OPS
        edge = [m for m in said.moments if m.year in {MINYEAR, MAXYEAR}]
        [m - (m.utcoffset() or timedelta()) for m in edge]  # in UTC it may be in no year
        "".join([*said.sources, *said.traces]).encode()  # half a surrogate has no bytes
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    kinds = ((said.versions, int), (said.rows, dict), (said.sources, str), (said.traces, str))
    if not has_known_ops or any(set(map(type, values)) - {kind} for values, kind in kinds):
        return None
    dead = (row for op, row in zip(said.ops, said.rows, strict=True) if op == "dead")
    return said if all(row.keys() >= FOUND_DEAD for row in dead) else None


def _document(value: bytes | None) -> dict[str, Any]:
    with suppress(ValueError):  # what is no JSON is told below, as all that is none of ours
        found: dict[str, Any] = json.loads(value or b"0")
        if _said([found]) is not None:
            return found
    raw = (value or b"")[:MALFORMED_BYTES].decode("utf-8", "backslashreplace")
    now = datetime.now(UTC).isoformat()
    facts = {"committed_at": now, "source": "", "trace": "", "row": {MALFORMED: raw}}
    return {"op": "upsert", "version": 0, **facts}
