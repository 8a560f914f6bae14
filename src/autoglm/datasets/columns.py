"""Events → Arrow columns: the user's own by their names, ours with a leading underscore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from autoglm.contracts.change_event import ChangeEvent, DeadLetter
from autoglm.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

OURS = frozenset(
    {"_key", "_op", "_version", "_partition", "_offset", "_trace", "_source", "_committed_at",
     "_raw", "_cause", "_code"}
)  # fmt: skip
_PYTHON = {"string": str, "long": int, "double": float, "boolean": bool}


def to_columns(
    rows: Sequence[ChangeEvent],
    dead: Sequence[DeadLetter],
    *,
    known: Mapping[str, str],
    label: str,
    at: datetime,
) -> pa.Table:
    """One table of rows and dead letters; `known` is the table's schema (column → Delta type).

    Raises: DataError data.mixed_labels, data.schema_changed, data.reserved_column.
    """
    import pyarrow as pa

    names: dict[str, None] = {name: None for name in known if name not in OURS}
    for event in rows:
        names.update(dict.fromkeys(event.row))
    reserved = OURS & set(names)
    if reserved:
        raise DataError(
            f"the source has columns that the feature table keeps for itself: {sorted(reserved)}.",
            code="data.reserved_column",
            next_step="Rename them in a view and read that.",
        )
    nothing = [None] * len(dead)
    columns: dict[str, pa.Array] = {}
    for name in names:
        values = [event.row.get(name) for event in rows]
        kind = known.get(name) or _kind_of(name, values, is_label=name == label)
        columns[name] = pa.array(
            [*_fitted(name, values, kind, is_label=name == label), *nothing], _arrow_type(kind)
        )
    return pa.table({**columns, **_our_columns(rows, dead, at)})


def _our_columns(
    rows: Sequence[ChangeEvent], dead: Sequence[DeadLetter], at: datetime
) -> dict[str, pa.Array]:
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    none = [None] * len(rows)
    return {
        "_key": pa.array([*(e.key for e in rows), *(d.key for d in dead)], text),
        "_op": pa.array([*(e.op for e in rows), *("dead" for _ in dead)], text),
        "_version": pa.array([*(e.version for e in rows), *(0 for _ in dead)], whole),
        "_partition": pa.array([*(e.partition for e in rows), *(d.partition for d in dead)], whole),
        "_offset": pa.array([*(e.offset for e in rows), *(d.offset for d in dead)], whole),
        "_trace": pa.array([*(e.traceparent for e in rows), *(d.traceparent for d in dead)], text),
        "_source": pa.array([*(e.source for e in rows), *("" for _ in dead)], text),
        "_committed_at": pa.array(
            [*(e.committed_at for e in rows), *(at for _ in dead)], pa.timestamp("us", "UTC")
        ),
        "_raw": pa.array([*none, *(d.raw for d in dead)], text),
        "_cause": pa.array([*none, *(d.cause for d in dead)], text),
        "_code": pa.array([*none, *(d.code for d in dead)], text),
    }


def _kind_of(name: str, values: Sequence[Any], *, is_label: bool) -> str:
    """Delta type of a new column. A column that mixes types is text; a label must not mix."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds or kinds == {str}:
        return "string"
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "long"
    if kinds <= {int, float} and not is_label:
        return "double"
    if is_label and len(kinds) > 1:
        raise _mixed_labels(name, values)
    return "double" if kinds == {float} else "string"


def _fitted(name: str, values: Sequence[Any], kind: str, *, is_label: bool) -> list[Any]:
    wanted = _PYTHON.get(kind, str)
    fitted: list[Any] = []
    for value in values:
        if value is None or type(value) is wanted:
            fitted.append(value)
        elif is_label and not (wanted is float and type(value) is int):
            raise _mixed_labels(name, [value, wanted()], f"the table holds {wanted.__name__}")
        elif wanted is str:
            fitted.append(str(value))
        elif wanted is float and type(value) is int:
            fitted.append(float(value))
        else:
            raise DataError(
                f"column {name!r} holds {wanted.__name__}; a row brings"
                f" {type(value).__name__} {value!r}.",
                code="data.schema_changed",
                next_step="Give the changed column a new name, or start a new state folder.",
            )
    return fitted


def _mixed_labels(name: str, values: Sequence[Any], beside: str = "") -> DataError:
    examples: dict[type, Any] = {}
    for value in values:
        if value is not None:
            examples.setdefault(type(value), value)
    shown = " and ".join(f"{kind.__name__} {value!r}" for kind, value in examples.items())
    return DataError(
        f"labels in column {name!r} mix types: {beside or shown}"
        + (f"; a row brings {next(iter(examples.values()))!r}" if beside else "")
        + ".",
        code="data.mixed_labels",
        next_step="Make all labels text or all of them whole numbers.",
    )


def _arrow_type(kind: str) -> pa.DataType:
    import pyarrow as pa

    types = {"string": pa.string(), "long": pa.int64(), "double": pa.float64()}
    return pa.bool_() if kind == "boolean" else types.get(kind, pa.string())
