"""Change events as Arrow columns: a sequence of `ChangeEvent` for who looks at single ones, and a
table for who works on all of them at once.

`columns_of` is exact or refuses: what came in as 3 comes out as 3, never as 3.0 or "3".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, overload

from autoglm.contracts.change_event import ChangeEvent

if TYPE_CHECKING:
    import pyarrow as pa

# What the feature table keeps of an event beside its row, under the same names.
EVENT_COLUMNS = (
    "_key", "_op", "_version", "_committed_at", "_partition", "_offset", "_trace", "_source",
)  # fmt: skip

_RESERVED = frozenset({*EVENT_COLUMNS, "_raw", "_cause", "_code"})


class EventColumns(Sequence[ChangeEvent]):
    """`table` has EVENT_COLUMNS and the rows' own columns. A delete without a row is all NULL."""

    __slots__ = ("project", "table")

    def __init__(self, table: pa.Table, *, project: str) -> None:
        self.table, self.project = table, project

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> ChangeEvent: ...
    @overload
    def __getitem__(self, index: slice) -> EventColumns: ...
    def __getitem__(self, index: int | slice) -> ChangeEvent | EventColumns:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError("columns are cut, not picked: use `take` of the table")
            return self._with(self.table.slice(start, max(0, stop - start)))
        place = range(len(self))[index]
        return next(iter(self._with(self.table.slice(place, 1))))

    def __iter__(self) -> Iterator[ChangeEvent]:
        columns = {name: self.table[name].to_pylist() for name in EVENT_COLUMNS}
        names = self.names
        values = [self.table[name].to_pylist() for name in names]
        rows: Iterator[tuple[Any, ...]] = (
            zip(*values, strict=True) if names else iter([()] * len(self))
        )
        for key, op, version, at, partition, offset, trace, source, row in zip(
            *columns.values(), rows, strict=True
        ):
            is_bare = op == "delete" and all(value is None for value in row)
            yield ChangeEvent(
                project=self.project,
                source=source,
                key=key,
                op=op,
                version=version,
                row={} if is_bare else dict(zip(names, row, strict=True)),
                committed_at=at,
                partition=partition,
                offset=offset,
                traceparent=trace,
            )

    @property
    def names(self) -> list[str]:
        """The rows' own columns."""
        return [name for name in self.table.column_names if name not in EVENT_COLUMNS]

    def filter(self, mask: pa.Array | pa.ChunkedArray) -> EventColumns:
        return self._with(self.table.filter(mask))

    def set(self, name: str, values: pa.Array | pa.ChunkedArray) -> EventColumns:
        """The same events with another column `name`."""
        place = self.table.column_names.index(name)
        return self._with(self.table.set_column(place, name, values))

    def _with(self, table: pa.Table) -> EventColumns:
        return EventColumns(table, project=self.project)


def columns_of(events: Sequence[ChangeEvent]) -> pa.Table | None:
    """Keys, ops, versions, times and rows as columns; None when that would change a value: rows of
    different shape, a column of two types, lists, whole numbers beyond 64 bits, broken UTF-8.
    """
    return table_of(
        [e.key for e in events],
        [e.op for e in events],
        [e.version for e in events],
        [e.committed_at for e in events],
        [e.row for e in events],
    )


def table_of(
    keys: Sequence[str],
    ops: Sequence[str],
    versions: Sequence[int],
    committed_at: Sequence[datetime],
    rows: Sequence[Mapping[str, Any]],
) -> pa.Table | None:
    """See `columns_of`."""
    import pyarrow as pa

    names = next((tuple(row) for row in rows if row), ())
    wanted = frozenset(names)
    if any(map(is_reserved, names)) or not all(isinstance(name, str) for name in names):
        return None
    for op, row in zip(ops, rows, strict=True):
        if row.keys() != wanted and (row or op != "delete"):
            return None
        if op == "delete" and row and all(value is None for value in row.values()):
            return None  # it would come back without its row
    try:
        made = {
            "_key": pa.array(keys, pa.string()),
            "_op": pa.array(ops, pa.string()),
            "_version": pa.array(versions, pa.int64()),
            "_committed_at": pa.array(committed_at, pa.timestamp("us", tz="UTC")),
        }
        for name in names:
            values = [row.get(name) for row in rows]
            kinds = set(map(type, values)) - {type(None)}
            if len(kinds) > 1 or not kinds <= {str, int, float, bool}:
                return None
            made[name] = pa.array(values, arrow_types()[kinds.pop()] if kinds else pa.null())
        return pa.table(made)  # a name may be broken UTF-8 too
    except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
        return None


def placed(
    table: pa.Table,
    *,
    partition: int,
    offsets: Sequence[int],
    source: str | Sequence[str] | pa.Array,
    traceparent: str | Sequence[str] | pa.Array,
) -> pa.Table:
    """A table of `columns_of` with where its events lie in a broker; a text is that of all."""
    import pyarrow as pa

    def column(said: str | Sequence[str] | pa.Array) -> pa.Array:
        if isinstance(said, pa.Array):
            return said
        if isinstance(said, str):
            return pa.repeat(pa.scalar(said, pa.string()), table.num_rows)
        return pa.array(said, pa.string())

    numbers = pa.repeat(pa.scalar(partition, pa.int32()), table.num_rows)
    return (
        table.append_column("_partition", numbers)
        .append_column("_offset", pa.array(offsets, pa.int64()))
        .append_column("_trace", column(traceparent))
        .append_column("_source", column(source))
    )


def joined(parts: Sequence[Sequence[ChangeEvent]]) -> Sequence[ChangeEvent]:
    """One after the other; as columns where all are and their types agree."""
    import pyarrow as pa

    parts = [part for part in parts if len(part)]
    if len(parts) == 1:
        return parts[0]
    tables = [part.table for part in parts if isinstance(part, EventColumns)]
    if tables and len(tables) == len(parts) and _same_shape(tables):
        whole = pa.concat_tables(tables, promote_options="default")
        first = parts[0]
        assert isinstance(first, EventColumns)
        return EventColumns(whole, project=first.project)
    return [event for part in parts for event in part]


def num_bytes(events: Sequence[ChangeEvent]) -> int:
    """About what their values take in memory."""
    if isinstance(events, EventColumns):
        return int(events.table.nbytes)
    return sum(len(v) for e in events for v in e.row.values() if isinstance(v, str))


def _same_shape(tables: Sequence[pa.Table]) -> bool:
    """The same names, and no column of two types: a missing column is not one full of NULL."""
    import pyarrow as pa

    names = set(tables[0].column_names)
    kinds: Mapping[str, set[Any]] = {name: set() for name in names}
    for table in tables:
        if set(table.column_names) != names:
            return False
        for field in table.schema:
            if not pa.types.is_null(field.type):
                kinds[field.name].add(field.type)
    return all(len(found) <= 1 for found in kinds.values())


@cache
def arrow_types() -> dict[type, Any]:
    """Kind of a value → type of a column that holds it exactly."""
    import pyarrow as pa

    return {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def is_reserved(name: str) -> bool:
    """A column that the feature table has for itself."""
    return name in _RESERVED
