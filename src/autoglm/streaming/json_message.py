"""A change as a message that programs of others can read: key = the row's key, value = JSON.

{"op": "upsert", "version": 7, "committed_at": "2026-01-02T03:04:05.678901+00:00",
 "source": "sql/articles", "trace": "00-…", "row": {"id": 3, "text": "…"}}

Source and trace stand in the message's headers too, for tools; here they cost a reader no call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from autoglm.contracts.change_event import ChangeEvent
from autoglm.contracts.event_columns import EventColumns, placed, table_of

# Of a message that is none of ours the beginning is kept, under this column.
MALFORMED, MALFORMED_BYTES = "malformed", 65_536


def to_key(event: ChangeEvent) -> bytes:
    return event.key.encode("utf-8", "surrogatepass")


def to_value(event: ChangeEvent, source: str, traceparent: str) -> bytes:
    document = {
        "op": event.op,
        "version": event.version,
        "committed_at": event.committed_at.isoformat(),
        "source": source,
        "trace": traceparent,
        "row": event.row,
    }
    try:
        return json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # broken UTF-8 passes through and is judged by the processor
        return json.dumps(document).encode()


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
    try:
        documents = json.loads(b"[" + b",".join(value or b"0" for value in values) + b"]")
    except ValueError:
        documents = []
    if len(documents) != len(values) or not all(map(_is_ours, documents)):
        documents = [_document(value) for value in values]
    texts = [(key or b"").decode("utf-8", "surrogatepass") for key in keys]
    sources = [d["source"] for d in documents]
    traces = [d["trace"] for d in documents]
    moments = [datetime.fromisoformat(d["committed_at"]) for d in documents]
    rows = [d["row"] for d in documents]
    table = table_of(
        texts, [d["op"] for d in documents], [d["version"] for d in documents], moments, rows
    )
    if table is not None:
        whole = placed(
            table, partition=partition, offsets=offsets, source=sources, traceparent=traces
        )
        return EventColumns(whole, project=project)
    return [
        ChangeEvent(
            project=project,
            source=source,
            key=key,
            op=document["op"],
            version=document["version"],
            row=document["row"],
            committed_at=moment,
            partition=partition,
            offset=offset,
            traceparent=trace,
        )
        for key, document, moment, offset, source, trace in zip(
            texts, documents, moments, offsets, sources, traces, strict=True
        )
    ]


def _is_ours(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and document.get("op") in ("upsert", "delete", "dead")
        and type(document.get("version")) is int
        and isinstance(document.get("row"), dict)
        and (document["op"] != "dead" or document["row"].keys() >= {"raw", "cause", "code"})
        and isinstance(document.get("committed_at"), str)
        and _is_moment(document["committed_at"])
        and isinstance(document.get("source"), str)
        and isinstance(document.get("trace"), str)
    )


def _is_moment(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _document(value: bytes | None) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(value or b"0")
        if _is_ours(found):
            return found
    except ValueError:
        pass
    raw = (value or b"")[:MALFORMED_BYTES].decode("utf-8", "backslashreplace")
    now = datetime.now(UTC).isoformat()
    facts = {"committed_at": now, "source": "", "trace": "", "row": {MALFORMED: raw}}
    return {"op": "upsert", "version": 0, **facts}
