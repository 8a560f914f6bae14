"""Rows as Arrow columns: the user's columns under their own names and types, ours with `_`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from autoglm.contracts.change_event import ChangeEvent, DeadLetter
from autoglm.contracts.event_columns import EventColumns

SYSTEM_SCHEMA = pa.schema(
    [
        ("_key", pa.string()),
        ("_op", pa.string()),  # upsert | delete | dead; the table's partition column
        ("_version", pa.int64()),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
        ("_trace", pa.string()),
        ("_committed_at", pa.timestamp("us", tz="UTC")),
        ("_source", pa.string()),
        ("_raw", pa.string()),
        ("_cause", pa.string()),
        ("_code", pa.string()),
    ]
)
SYSTEM_COLUMNS = frozenset(SYSTEM_SCHEMA.names)
_TYPES = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_WORDS = {"string": "text", "int64": "whole number", "double": "number", "bool": "truth value"}
_NONE = type(None)
# Of a row that does not fit only the beginning is kept as evidence.
RAW_BYTES = 65_536


def to_arrow(
    rows: Sequence[ChangeEvent],
    dead: Sequence[DeadLetter],
    known: pa.Schema,
    *,
    text: str,
    now: datetime,
) -> pa.Table:
    """`rows`, which fit (see `without_unfit`), and `dead` with every column of `known` and the new
    ones that `rows` bring.
    """
    if isinstance(rows, EventColumns):
        table = _from_columns(rows, known, text=text)
        if table is not None:
            if not dead:
                return table
            letters = pa.table(_system_arrays([], dead, now), schema=SYSTEM_SCHEMA)
            return pa.concat_tables([table, letters], promote_options="default")
        rows = list(rows)
    arrays = _system_arrays(rows, dead, now)
    fields = list(SYSTEM_SCHEMA)
    padding = [None] * len(dead)
    for name in _user_columns(rows, known):
        values = [row.row.get(name) for row in rows]
        kinds = set(map(type, values)) - {_NONE}
        known_type = known.field(name).type if name in known.names else None
        if name == text and known_type is None:
            known_type = pa.string()
        target = known_type if known_type is not None else _type_of(kinds)
        if target is None:
            continue  # nothing but NULL so far: the first value will say what the column is
        arrays.append(_column([*values, *padding], kinds, target, is_text=name == text))
        fields.append(pa.field(name, target))
    return pa.table(arrays, schema=pa.schema(fields))


def without_unfit(
    rows: Sequence[ChangeEvent], known: pa.Schema, *, text: str, label: str
) -> tuple[Sequence[ChangeEvent], list[DeadLetter]]:
    """Rows that the table can hold, and dead letters of the others: a text or label of another
    type than the table's (in the first batch: than most labels), a value that its column cannot
    hold, a column whose name the table cannot take. What lies in the broker comes again for ever:
    one such row must not stop those behind it.
    """
    if isinstance(rows, EventColumns):
        if _wrong_name(rows.names, _names_of(known)) is None and all(
            _column_fits(rows.table, name, known) for name in rows.names
        ):
            return rows, []
        rows = list(rows)
    targets = _targets(rows, known, text=text, label=label)
    names, good, dead = _names_of(known), [], []
    for row in rows:
        wrong = _wrong_name(row.row, names) or _wrong_value(row.row, targets, text, label)
        if wrong is None:
            names.update((name.casefold(), name) for name in row.row)
            good.append(row)
        else:
            dead.append(_letter(row, *wrong))
    return good, dead


def widened(rows: Sequence[ChangeEvent], known: pa.Schema, *, but: Collection[str]) -> list[str]:
    """Columns of whole numbers to which `rows` bring others; never those of `but`."""
    if isinstance(rows, EventColumns):
        if all(_column_fits(rows.table, name, known) for name in rows.names):
            return []
        rows = list(rows)
    return [
        field.name
        for field in known
        if field.name not in {*SYSTEM_COLUMNS, *but}
        and pa.types.is_integer(field.type)
        and any(type(_whole(row.row.get(field.name))) is float for row in rows)
    ]


def as_numbers(log: pa.Table, names: Sequence[str]) -> pa.Table | None:
    """`log` with whole numbers of `names` as numbers; None where one would lose digits."""
    fields = [f.with_type(pa.float64()) if f.name in names else f for f in log.schema]
    try:
        return log.cast(pa.schema(fields))
    except pa.ArrowInvalid:
        return None


def _targets(
    rows: Sequence[ChangeEvent], known: pa.Schema, *, text: str, label: str
) -> dict[str, pa.DataType]:
    """What each column holds that does not take everything."""
    found = {f.name: f.type for f in known if f.name not in SYSTEM_COLUMNS}
    for name in dict.fromkeys(name for row in rows for name in row.row):
        if name in found:
            continue
        values = [row.row[name] for row in rows if row.row.get(name) is not None]
        if name == text:
            found[name] = pa.string()
        elif name == label:
            counts = Counter(map(type, values))
            most = max(counts, key=lambda kind: (counts[kind], kind is str), default=str)
            found[name] = _TYPES.get(most, pa.string())
        elif (kind := _type_of(set(map(type, values)))) is not None:
            found[name] = kind
    return {n: t for n, t in found.items() if n in (text, label) or not pa.types.is_string(t)}


def _wrong_value(
    row: Mapping[str, Any], targets: Mapping[str, pa.DataType], text: str, label: str
) -> tuple[str, str] | None:
    """(code, cause) of the first value that its column cannot hold."""
    for name, target in targets.items():
        value = row.get(name)
        if value is None or _fits(value, target):
            continue
        own = {label: "data.mixed_labels", text: "data.not_text"}
        cause = f"column {name!r} holds {_word(target)}s; {value!r:.60} is none"
        return own.get(name, "data.schema_changed"), cause
    return None


def _names_of(known: pa.Schema) -> dict[str, str]:
    """The user's columns by their names without case."""
    return {name.casefold(): name for name in known.names if name not in SYSTEM_COLUMNS}


def _wrong_name(row: Iterable[str], names: Mapping[str, str]) -> tuple[str, str] | None:
    """(code, cause) of the first column that the table cannot take."""
    own: dict[str, str] = {}
    for name in row:
        if name in SYSTEM_COLUMNS:
            cause = f"the feature table keeps the column name {name!r} for itself"
            return "data.reserved_column", cause
        folded = name.casefold()
        other = names.get(folded) or own.setdefault(folded, name)
        if other != name:
            cause = f"the columns {other!r} and {name!r} differ only in case"
            return "data.duplicate_column", cause
    return None


def _letter(row: ChangeEvent, code: str, cause: str) -> DeadLetter:
    return DeadLetter(
        project=row.project,
        key=row.key,
        raw=json.dumps(dict(row.row), default=str)[:RAW_BYTES],
        cause=cause,
        code=code,
        partition=row.partition,
        offset=row.offset,
        traceparent=row.traceparent,
        version=row.version,
        source=row.source,
        committed_at=row.committed_at,
    )


def _system_arrays(
    rows: Sequence[ChangeEvent], dead: Sequence[DeadLetter], now: datetime
) -> list[pa.Array]:
    nothing = [None] * len(rows)
    columns: Mapping[str, list[Any]] = {
        "_key": [r.key for r in rows] + [d.key for d in dead],
        "_op": [r.op for r in rows] + ["dead"] * len(dead),
        "_version": [r.version for r in rows] + [d.version for d in dead],
        "_partition": [r.partition for r in rows] + [d.partition for d in dead],
        "_offset": [r.offset for r in rows] + [d.offset for d in dead],
        "_trace": [r.traceparent for r in rows] + [d.traceparent for d in dead],
        "_committed_at": [r.committed_at for r in rows] + [d.committed_at or now for d in dead],
        "_source": [r.source for r in rows] + [d.source for d in dead],
        "_raw": [*nothing, *(d.raw for d in dead)],
        "_cause": [*nothing, *(d.cause for d in dead)],
        "_code": [*nothing, *(d.code for d in dead)],
    }
    return [pa.array(columns[field.name], field.type) for field in SYSTEM_SCHEMA]


def _from_columns(rows: EventColumns, known: pa.Schema, *, text: str) -> pa.Table | None:
    """Columns that are of the table's types already, as they stand; None when one is not."""
    table = rows.table
    names = _once([n for n in known.names if n not in SYSTEM_COLUMNS], rows.names)
    fields, arrays = list(SYSTEM_SCHEMA), []
    for field in SYSTEM_SCHEMA:
        there = field.name in table.column_names
        arrays.append(table[field.name] if there else pa.nulls(table.num_rows, field.type))
    for name in names:
        if not _column_fits(table, name, known):
            return None
        there = name in table.column_names
        is_known = name in known.names
        kind = known.field(name).type if is_known else table[name].type
        if pa.types.is_null(kind):
            if name != text:
                continue  # nothing but NULL so far: the first value will say what the column is
            kind = pa.string()
        column = table[name] if there else pa.nulls(table.num_rows, kind)
        arrays.append(column.cast(kind) if pa.types.is_null(column.type) else column)
        fields.append(pa.field(name, kind))
    return pa.table(arrays, schema=pa.schema(fields))


def _column_fits(table: pa.Table, name: str, known: pa.Schema) -> bool:
    """Whether the column is of the table's very type, or new to it, or empty."""
    if name not in table.column_names or pa.types.is_null(table[name].type):
        return True
    return name not in known.names or bool(known.field(name).type == table[name].type)


def _user_columns(rows: Sequence[ChangeEvent], known: pa.Schema) -> list[str]:
    """The table's columns, then the new ones in the order in which they first appear."""
    shapes = dict.fromkeys(tuple(row.row) for row in rows)
    return _once([n for n in known.names if n not in SYSTEM_COLUMNS], *shapes)


def _once(*shapes: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for shape in shapes for name in shape))


def _type_of(kinds: set[type]) -> pa.DataType | None:
    if not kinds:
        return None
    if len(kinds) == 1:
        return _TYPES.get(next(iter(kinds)), pa.string())
    return pa.float64() if kinds <= {int, float} else pa.string()


def _column(values: list[Any], kinds: set[type], target: pa.DataType, *, is_text: bool) -> pa.Array:
    """`values` as `target` without losing anything."""
    if pa.types.is_string(target) and not is_text and not kinds <= {str}:
        return pa.array([_spelt(value) for value in values], target)
    if pa.types.is_integer(target) and float in kinds:
        return pa.array([_whole(value) for value in values], target)
    if pa.types.is_floating(target) and int in kinds:
        return pa.array([value if value is None else float(value) for value in values], target)
    return pa.array(values, target)


def _whole(value: Any) -> Any:
    """3.0 as 3; NaN is how number columns spell a missing value."""
    if not isinstance(value, float):
        return value
    if value != value:
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _fits(value: Any, target: pa.DataType) -> bool:
    if pa.types.is_string(target):
        return isinstance(value, str)
    if pa.types.is_integer(target):
        whole = _whole(value)
        return whole is None or (type(whole) is int and -(2**63) <= whole < 2**63)
    if pa.types.is_floating(target):
        # Beyond 53 bits not every whole number has a neighbour that is itself.
        return type(value) is float or (
            type(value) is int and abs(value) < 2**1023 and int(float(value)) == value
        )
    return isinstance(value, bool)


def _spelt(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _word(kind: pa.DataType | None) -> str:
    return _WORDS.get(str(kind), str(kind))
