"""What every collector makes: change events, events that are dead from the start, batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent
from autoglm.observability.tracing import new_traceparent

RAW_CHARACTERS = 65_536  # kept of what is no row


@dataclass(frozen=True, slots=True)
class Maker:
    """Stamps project and source on what one collector reads."""

    project: str
    source: str

    def upsert(
        self, key: str, row: Mapping[str, Any], version: int, at: datetime | None = None
    ) -> ChangeEvent:
        return ChangeEvent(
            project=self.project,
            source=self.source,
            key=key,
            op="upsert",
            version=version,
            row=row,
            committed_at=at or datetime.now(UTC),
        )

    def delete(self, key: str, version: int, at: datetime | None = None) -> ChangeEvent:
        return ChangeEvent(
            project=self.project,
            source=self.source,
            key=key,
            op="delete",
            version=version,
            row={},
            committed_at=at or datetime.now(UTC),
        )

    def dead(
        self,
        where: str,
        raw: object,
        *,
        code: str,
        cause: str,
        version: int,
        at: datetime | None = None,
    ) -> ChangeEvent:
        """What was read at `where` and is no row; it travels to the dead letters of the table."""
        shown = raw if isinstance(raw, str) else json.dumps(raw, default=str)
        return ChangeEvent(
            project=self.project,
            source=self.source,
            key=where,
            op="dead",
            version=version,
            row={"raw": shown[:RAW_CHARACTERS], "code": code, "cause": cause},
            committed_at=at or datetime.now(UTC),
        )

    def batch(self, events: Sequence[ChangeEvent], position: str) -> ChangeBatch:
        return ChangeBatch(
            project=self.project,
            source=self.source,
            events=tuple(events),
            position=position,
            traceparent=new_traceparent(),
        )
