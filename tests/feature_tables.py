"""What tests of the feature table write and read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoglm.contracts.change_event import ChangeEvent, OffsetRange, Partition
from autoglm.datasets.feature_table import DeltaFeatureTable

PARTITION = Partition(group="g", topic="t", number=0)
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def made(key: str, version: int, **row: Any) -> ChangeEvent:
    return ChangeEvent(
        project="p", source="s", key=key, op="upsert", version=version, row=row,
        committed_at=datetime(2026, 1, 1, tzinfo=UTC), partition=0, offset=version,
        traceparent=TRACE,
    )  # fmt: skip


def table_at(place: Path | str) -> DeltaFeatureTable:
    return DeltaFeatureTable(place, project="p", key="id", text="text", label="label")


def add(table: DeltaFeatureTable, *rows: dict[str, Any], start: int | None = None) -> int:
    """One commit; keys are ids. It goes on where the table stands, or at `start`."""
    begin = table.next_offset(PARTITION) if start is None else start
    events = [made(str(row["id"]), begin + i, **row) for i, row in enumerate(rows)]
    return table.commit(
        events,
        [],
        {PARTITION: OffsetRange(start=begin, end=begin + len(rows))},
        positions={"s": str(begin + len(rows))},
        traceparent=TRACE,
    )


def rows(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": n, "text": f"text {n}", "label": "ab"[n % 2], **more} for n in numbers]
