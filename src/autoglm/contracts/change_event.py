from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Op = Literal["upsert", "delete", "dead"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeEvent:
    """One committed change of one row at a source.

    `version` grows with the source's commit order per key. `op` is `dead` where the source found no
    row in what it read: `row` is then `raw`, `cause` and `code`, `key` says where. `partition`,
    `offset` and `traceparent` are known once the event has been in a broker (-1 and `""` before).
    """

    project: str
    source: str
    key: str
    op: Op
    version: int
    row: Mapping[str, Any]
    committed_at: datetime
    partition: int = -1
    offset: int = -1
    traceparent: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeBatch:
    """Events of one source in commit order per key, with the position after the last of them.

    `traceparent` (W3C) names the trace of this batch; it travels in the broker's header and into
    the feature table.
    """

    project: str
    source: str
    events: tuple[ChangeEvent, ...]
    position: str
    traceparent: str


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Partition:
    """Where an offset counts: one consumer group's view of one partition of one topic."""

    group: str
    topic: str
    number: int

    def app_id(self, table_id: str) -> str:
        """The Delta `txn` application id that carries this partition's next offset."""
        return f"{table_id}/{self.group}/{self.topic}/{self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OffsetRange:
    """Offsets `start` (first, included) to `end` (excluded) of one partition."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """An event that no processor could use: raw bytes, cause and trace, kept in the same table.

    `raw` is the row as JSON, `null` of a delete; of a long one only the beginning.
    """

    project: str
    key: str
    raw: str
    cause: str
    code: str
    partition: int
    offset: int
    traceparent: str = field(default="")
    version: int = 0
    source: str = ""
    committed_at: datetime | None = None
