"""One column of a batch, whatever form the batch has: processors write a function of a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from autoglm.contracts.change_event import ChangeEvent, DeadLetter
from autoglm.contracts.event_columns import EventColumns
from autoglm.plugins.kinds import Processed
from autoglm.streaming.processor import dead_letter

# What is wrong with an event: (code, cause).
Problem = tuple[str, str] | None


def with_text(
    batch: Sequence[ChangeEvent], column: str, change: Callable[[str], str]
) -> Sequence[ChangeEvent]:
    """The batch with every text of `column` changed; what is no text stays as it is."""
    if isinstance(batch, EventColumns):
        if column not in batch.names or str(batch.table[column].type) != "string":
            return batch
        import pyarrow as pa

        values = batch.table[column].to_pylist()
        changed = [value if value is None else change(value) for value in values]
        return batch.set(column, pa.array(changed, pa.string()))
    return [
        replace(event, row={**event.row, column: change(event.row[column])})
        if isinstance(event.row.get(column), str)
        else event
        for event in batch
    ]


def values_of(batch: Sequence[ChangeEvent], column: str) -> list[Any]:
    """The column's values, None where there is none; deletes have none."""
    if isinstance(batch, EventColumns):
        if column not in batch.names:
            return [None] * len(batch)
        values = batch.table[column].to_pylist()
        ops = batch.table["_op"].to_pylist()
        return [v if op == "upsert" else None for v, op in zip(values, ops, strict=True)]
    return [event.row.get(column) if event.op == "upsert" else None for event in batch]


def without(batch: Sequence[ChangeEvent], problems: Sequence[Problem]) -> Processed:
    """Events that have a problem become dead letters; the others pass as they are."""
    places = [place for place, problem in enumerate(problems) if problem is not None]
    if not places:
        return Processed(rows=batch, dead=[])
    dead: list[DeadLetter] = []
    for place in places:
        problem = problems[place]
        assert problem is not None
        dead.append(dead_letter(batch[place], *problem))
    if isinstance(batch, EventColumns):
        import pyarrow as pa

        kept = batch.filter(pa.array([problem is None for problem in problems], pa.bool_()))
        return Processed(rows=kept, dead=dead)
    rows = [event for event, problem in zip(batch, problems, strict=True) if problem is None]
    return Processed(rows=rows, dead=dead)
