"""What the feature table knows of one row: each of its changes, and in which version it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from autoglm.contracts.change_event import Partition
from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.datasets.table_schema import SYSTEM_COLUMNS
from autoglm.observability.tracing import trace_id_of


@dataclass(frozen=True, kw_only=True, slots=True)
class RowChange:
    """One entry of the log. `table_version` is the commit that brought it; `op` is `upsert`,
    `delete` or `dead` (then with `code` and `cause`); `trace_id` that of its batch.
    """

    key: str
    op: str
    table_version: int
    source: str
    source_version: int
    partition: int
    offset: int
    committed_at: datetime
    trace_id: str
    row: Mapping[str, Any]
    code: str = ""
    cause: str = ""


@dataclass(kw_only=True)
class RowHistory:
    """Of a table that one consumer group fills from one topic. Remembers what it looked up."""

    table: DeltaFeatureTable
    group: str
    topic: str
    _offsets: dict[tuple[int, int], int] = field(default_factory=dict)
    _versions: list[int] = field(default_factory=list)

    def of(self, key: str) -> list[RowChange]:
        """The changes of the row `key`, oldest first; nothing of an unknown one."""
        return self.of_many([key])[key]

    def of_many(self, keys: Sequence[str]) -> dict[str, list[RowChange]]:
        """Of several rows in one reading of the log."""
        found = self.table.changes_of(keys).to_pylist()
        order = ("_version", "_partition", "_offset")
        found.sort(key=lambda row: tuple(row[name] for name in order))
        changes: dict[str, list[RowChange]] = {key: [] for key in keys}
        for row in found:
            changes[row["_key"]].append(self._change(row))
        return changes

    def _change(self, row: Mapping[str, Any]) -> RowChange:
        own = {name: value for name, value in row.items() if name not in SYSTEM_COLUMNS}
        return RowChange(
            key=row["_key"],
            op=row["_op"],
            table_version=self._version_of(row["_partition"], row["_offset"]),
            source=row["_source"],
            source_version=row["_version"],
            partition=row["_partition"],
            offset=row["_offset"],
            committed_at=row["_committed_at"],
            trace_id=trace_id_of(row["_trace"]),
            row=own if row["_op"] == "upsert" else {},
            code=row["_code"] or "",
            cause=row["_cause"] or "",
        )

    def _version_of(self, partition: int, offset: int) -> int:
        """The first commit behind which the consumer stands beyond `offset`: what a file says would
        be lost when files are compacted.
        """
        if not self._versions:
            self._versions = sorted(each.version for each in self.table.versions())
        low, high = 0, len(self._versions) - 1
        while low < high:
            middle = (low + high) // 2
            if self._next_offset(self._versions[middle], partition) > offset:
                high = middle
            else:
                low = middle + 1
        return self._versions[low]

    def _next_offset(self, version: int, partition: int) -> int:
        if (version, partition) not in self._offsets:
            name = Partition(group=self.group, topic=self.topic, number=partition)
            at = self.table.open(version)
            stored = at.transaction_version(name.app_id(self.table.table_id))
            self._offsets[version, partition] = int(stored or 0)
        return self._offsets[version, partition]
