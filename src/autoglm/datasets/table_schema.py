"""Rows as Arrow columns: the user's columns under their own names and types, ours with `_`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from autoglm.contracts.change_event import ChangeEvent, DeadLetter
from autoglm.contracts.event_columns import EventColumns
from autoglm.errors import DataError

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
# Above it a float steps by more than one.
EXACT_IN_FLOATS = 2**53
# Of a row that does not fit only the beginning is kept as evidence.
RAW_BYTES = 65_536


class TooNarrowError(Exception):
    """A column of whole numbers meets a fraction; `refusal` is for whoever cannot widen it."""

    def __init__(self, column: str, refusal: DataError) -> None:
        super().__init__(column)
        self.column, self.refusal = column, refusal


def to_arrow(
    rows: Sequence[ChangeEvent],
    dead: Sequence[DeadLetter],
    known: pa.Schema,
    *,
    text: str,
    label: str,
    now: datetime,
    stored_label: Callable[[], Any],
) -> pa.Table:
    """`rows` and `dead` with every column of `known` and the new ones that `rows` bring.

    `stored_label` gives a label that the table holds, for the error that names two.
    Raises: DataError data.mixed_labels, data.schema_changed, data.reserved_column,
    data.duplicate_column; TooNarrowError where a wider column would hold the rows.
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
        if name == label:
            _check_labels(name, values, kinds, known_type, stored_label)
        target = known_type if known_type is not None else _type_of(kinds)
        if target is None:
            continue  # nothing but NULL so far: the first value will say what the column is
        values += padding
        try:
            arrays.append(_column(name, values, kinds, target, is_text=name == text))
        except DataError as error:
            # Not a label: 1 would become the class "1.0".
            if name != label and _may_widen(values, kinds, target):
                raise TooNarrowError(name, error) from error
            raise
        fields.append(pa.field(name, target))
    return pa.table(arrays, schema=pa.schema(fields))


def without_unfit(
    rows: Sequence[ChangeEvent], known: pa.Schema, *, text: str, label: str
) -> tuple[Sequence[ChangeEvent], list[DeadLetter]]:
    """Rows that the table can hold, and dead letters of those whose text or label is of another
    type than the table's (in the first batch: than most labels).
    """
    if isinstance(rows, EventColumns):
        if all(_column_fits(rows.table, name, known) for name in (text, label)):
            return rows, []
        rows = list(rows)
    targets = {}
    for name in (text, label):
        values = [row.row.get(name) for row in rows]
        target = known.field(name).type if name in known.names else None
        if target is None:
            counts = Counter(type(v) for v in values if v is not None)
            most = max(counts, key=lambda kind: (counts[kind], kind is str), default=str)
            target = pa.string() if name == text else _TYPES.get(most, pa.string())
        if not all(value is None or _fits(value, target) for value in values):
            targets[name] = target
    if not targets:
        return list(rows), []
    good, dead = [], []
    for row in rows:
        wrong = next(
            (
                name
                for name, target in targets.items()
                if row.row.get(name) is not None and not _fits(row.row[name], target)
            ),
            None,
        )
        if wrong is None:
            good.append(row)
            continue
        dead.append(
            DeadLetter(
                project=row.project,
                key=row.key,
                raw=json.dumps(dict(row.row), default=str)[:RAW_BYTES],
                cause=f"column {wrong!r} holds {_word(targets[wrong])}s;"
                f" {row.row[wrong]!r:.60} is none",
                code="data.mixed_labels" if wrong == label else "data.not_text",
                partition=row.partition,
                offset=row.offset,
                traceparent=row.traceparent,
                version=row.version,
                source=row.source,
                committed_at=row.committed_at,
            )
        )
    return good, dead


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
    names = _checked([n for n in known.names if n not in SYSTEM_COLUMNS], rows.names)
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
    return _checked([n for n in known.names if n not in SYSTEM_COLUMNS], *shapes)


def _checked(*shapes: Sequence[str]) -> list[str]:
    """Every name once. Raises: DataError data.reserved_column, data.duplicate_column."""
    names = dict.fromkeys(name for shape in shapes for name in shape)
    folded: dict[str, str] = {}
    for name in names:
        if name in SYSTEM_COLUMNS:
            raise DataError(
                f"the source has a column {name!r}, a name that the feature table keeps for"
                " itself.",
                code="data.reserved_column",
                next_step="Rename it, or read from a view that does.",
            )
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(
                f"the columns {other!r} and {name!r} differ only in case.",
                code="data.duplicate_column",
                next_step="Rename one, or read from a view that does.",
            )
    return list(names)


def _type_of(kinds: set[type]) -> pa.DataType | None:
    if not kinds:
        return None
    if len(kinds) == 1:
        return _TYPES.get(next(iter(kinds)), pa.string())
    return pa.float64() if kinds <= {int, float} else pa.string()


def _column(
    name: str, values: list[Any], kinds: set[type], target: pa.DataType, *, is_text: bool
) -> pa.Array:
    """`values` as `target` without losing anything. Raises: DataError data.schema_changed."""
    if pa.types.is_string(target):
        if kinds <= {str}:
            return pa.array(values, target)
        if not is_text:
            return pa.array([_spelt(value) for value in values], target)
    elif pa.types.is_integer(target):
        whole = [_whole(value) for value in values] if float in kinds else values
        if kinds <= {int, float} and set(map(type, whole)) <= {int, _NONE}:
            return pa.array(whole, target)
    elif pa.types.is_floating(target):
        if kinds <= {float} or _are_exact(values, kinds):
            return pa.array([value if value is None else float(value) for value in values], target)
    elif pa.types.is_boolean(target) and kinds <= {bool}:
        return pa.array(values, target)
    example = next(v for v in values if v is not None and not _fits(v, target))
    raise DataError(
        f"column {name!r} of the feature table holds {_word(target)}s; {example!r:.60} is a"
        f" {_word(_type_of({type(example)}))}. Nothing of this batch was written.",
        code="data.schema_changed",
        next_step="Correct the rows in the source; their next change replaces this one.",
    )


def _may_widen(values: Sequence[Any], kinds: set[type], target: pa.DataType) -> bool:
    return bool(pa.types.is_integer(target)) and _are_exact(values, kinds)


def _are_exact(values: Sequence[Any], kinds: set[type]) -> bool:
    """Whether each stays what it is as a float."""
    return kinds <= {int, float} and all(v is None or _fits(v, pa.float64()) for v in values)


def _check_labels(
    name: str,
    values: Sequence[Any],
    kinds: set[type],
    known_type: pa.DataType | None,
    stored_label: Callable[[], Any],
) -> None:
    """Text and numbers in one label column are two spellings of one class, or a mistake."""
    a_text = next((v for v in values if isinstance(v, str)), None)
    other = next((v for v in values if v is not None and not isinstance(v, str)), None)
    if known_type is not None:
        is_text = pa.types.is_string(known_type)
        if a_text is None and is_text and kinds:
            a_text = stored_label()
        if other is None and not is_text and kinds:
            other = stored_label()
    if a_text is None or other is None:
        return
    raise DataError(
        f"label column {name!r} mixes types: {a_text!r:.60} is text, {other!r:.60} is not."
        " Nothing of this batch was written.",
        code="data.mixed_labels",
        next_step="Write all labels alike in the source; the next change of a row replaces this.",
    )


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
        return type(_whole(value)) in (int, _NONE)
    if pa.types.is_floating(target):
        return type(value) is float or (type(value) is int and abs(value) <= EXACT_IN_FLOATS)
    return isinstance(value, bool)


def _spelt(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _word(kind: pa.DataType | None) -> str:
    return _WORDS.get(str(kind), str(kind))
