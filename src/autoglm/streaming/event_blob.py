"""A batch of events as bytes of the log: Arrow columns where that is exact, JSON rows where not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from autoglm.contracts.change_event import ChangeEvent
from autoglm.contracts.event_columns import EventColumns, columns_of, placed

_FORM = b"autoglm.form"


def to_blob(events: Sequence[ChangeEvent]) -> bytes:
    """An Arrow IPC stream."""
    import pyarrow as pa

    project = events[0].project
    table = columns_of(events) if all(e.project == project for e in events) else None
    if table is not None:
        table = table.replace_schema_metadata({_FORM: b"columns", b"autoglm.project": project})
        return _written(table)
    # ASCII-escaped JSON: a row with broken UTF-8 passes through and is judged by the processor.
    return _written(
        pa.table(
            {
                "key": pa.array([json.dumps(e.key) for e in events], pa.string()),
                "op": pa.array([e.op for e in events], pa.string()),
                "version": pa.array([e.version for e in events], pa.int64()),
                "row": pa.array([json.dumps(e.row) for e in events], pa.string()),
                "committed_at": pa.array(
                    [int(e.committed_at.timestamp() * 1e6) for e in events], pa.int64()
                ),
                "project": pa.array([e.project for e in events], pa.string()),
            }
        )
    )


def from_blob(
    blob: bytes, *, partition: int, base: int, source: str, traceparent: str
) -> Sequence[ChangeEvent]:
    """The events with where they lie; columns come back as columns."""
    import pyarrow as pa

    with pa.ipc.open_stream(blob) as reader:
        table = reader.read_all()
    facts = table.schema.metadata or {}
    if facts.get(_FORM) == b"columns":
        offsets = range(base, base + table.num_rows)
        whole = placed(
            table.replace_schema_metadata(None),
            partition=partition,
            offsets=offsets,
            source=source,
            traceparent=traceparent,
        )
        return EventColumns(whole, project=facts[b"autoglm.project"].decode())
    columns = table.to_pydict()
    rows = json.loads(f"[{','.join(columns['row'])}]")
    keys = json.loads(f"[{','.join(columns['key'])}]")
    return [
        ChangeEvent(
            project=project,
            source=source,
            key=key,
            op=op,
            version=version,
            row=row,
            committed_at=datetime.fromtimestamp(at / 1e6, UTC),
            partition=partition,
            offset=base + index,
            traceparent=traceparent,
        )
        for index, (project, key, op, version, row, at) in enumerate(
            zip(
                columns["project"], keys, columns["op"], columns["version"], rows,
                columns["committed_at"], strict=True,
            )
        )
    ]  # fmt: skip


def _written(table: object) -> bytes:
    import pyarrow as pa

    assert isinstance(table, pa.Table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
