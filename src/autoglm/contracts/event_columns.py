"""Change events as Arrow columns: a sequence of `ChangeEvent` for who looks at single ones, and a
table for who works on all of them at once.

`columns_of` is exact or refuses: what came in as 3 comes out as 3, never as 3.0 or "3".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, overload

from autoglm.contracts.change_event import ChangeEvent

if TYPE_CHECKING:
    import pyarrow as pa

# What the feature table keeps of an event beside its row, under the same names.
EVENT_COLUMNS = (
    "_key", "_op", "_version", "_committed_at", "_partition", "_offset", "_trace", "_source",
)  # fmt: skip


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
    import pyarrow as pa

    names = next((tuple(e.row) for e in events if e.row), ())
    wanted = frozenset(names)
    if wanted & _reserved() or not all(isinstance(name, str) for name in names):
        return None
    for event in events:
        if event.row.keys() != wanted and (event.row or event.op != "delete"):
            return None
        if event.op == "delete" and event.row and set(event.row.values()) == {None}:
            return None  # it would come back without its row
    arrays = {
        "_key": [e.key for e in events],
        "_op": [e.op for e in events],
        "_version": [e.version for e in events],
        "_committed_at": [e.committed_at for e in events],
    }
    types = {"_committed_at": pa.timestamp("us", tz="UTC"), "_version": pa.int64()}
    try:
        made = {n: pa.array(v, types.get(n, pa.string())) for n, v in arrays.items()}
        for name in names:
            values = [e.row.get(name) for e in events]
            kinds = set(map(type, values)) - {type(None)}
            if len(kinds) > 1 or not kinds <= {str, int, float, bool}:
                return None
            made[name] = pa.array(values, _types()[kinds.pop()] if kinds else pa.null())
    except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
        return None
    return pa.table(made)


def placed(
    table: pa.Table, *, partition: int, offsets: Sequence[int], source: str, traceparent: str
) -> pa.Table:
    """A table of `columns_of` with where its events lie in a broker."""
    import pyarrow as pa

    count = table.num_rows
    return (
        table.append_column("_partition", pa.repeat(pa.scalar(partition, pa.int32()), count))
        .append_column("_offset", pa.array(offsets, pa.int64()))
        .append_column("_trace", pa.repeat(pa.scalar(traceparent, pa.string()), count))
        .append_column("_source", pa.repeat(pa.scalar(source, pa.string()), count))
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
def _types() -> dict[type, Any]:
    import pyarrow as pa

    return {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


@cache
def _reserved() -> frozenset[str]:
    return frozenset({*EVENT_COLUMNS, "_raw", "_cause", "_code"})
