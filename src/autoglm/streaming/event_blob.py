"""A batch of events as bytes of the log: Arrow columns where that is exact, JSON rows where not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from autoglm.contracts.change_event import ChangeEvent
from autoglm.contracts.event_columns import EventColumns, columns_of, placed

_FORM, _SOURCE = b"autoglm.form", "_source"


def to_blob(events: Sequence[ChangeEvent], *, source: str) -> bytes:
    """An Arrow IPC stream. `source` is the batch's: events of another one (replayed dead letters)
    carry their own.
    """
    import pyarrow as pa

    project = events[0].project
    has_others = any(e.source != source for e in events)
    own = {_SOURCE: pa.array([e.source for e in events], pa.string())} if has_others else {}
    table = columns_of(events) if all(e.project == project for e in events) else None
    if table is not None:
        for name, column in own.items():
            table = table.append_column(name, column)
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
                **own,
            }
        )
    )


def from_blob(
    blob: bytes, *, partition: int, base: int, source: str, traceparent: str
) -> Sequence[ChangeEvent]:
    """The events with where they lie; columns come back as columns. `source` is the batch's."""
    import pyarrow as pa

    with pa.ipc.open_stream(blob) as reader:
        table = reader.read_all()
    sources: pa.Array | None = None
    if _SOURCE in table.column_names:
        sources = table[_SOURCE].combine_chunks()
        table = table.drop_columns([_SOURCE])
    facts = table.schema.metadata or {}
    if facts.get(_FORM) == b"columns":
        offsets = range(base, base + table.num_rows)
        whole = placed(
            table.replace_schema_metadata(None),
            partition=partition,
            offsets=offsets,
            source=source if sources is None else sources,
            traceparent=traceparent,
        )
        return EventColumns(whole, project=facts[b"autoglm.project"].decode())
    own = [source] * table.num_rows if sources is None else sources.to_pylist()
    columns = table.to_pydict()
    rows = json.loads(f"[{','.join(columns['row'])}]")
    keys = json.loads(f"[{','.join(columns['key'])}]")
    return [
        ChangeEvent(
            project=project,
            source=its,
            key=key,
            op=op,
            version=version,
            row=row,
            committed_at=datetime.fromtimestamp(at / 1e6, UTC),
            partition=partition,
            offset=base + index,
            traceparent=traceparent,
        )
        for index, (project, key, op, version, row, at, its) in enumerate(
            zip(
                columns["project"], keys, columns["op"], columns["version"], rows,
                columns["committed_at"], own, strict=True,
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
