"""broker ─► processor ─► feature table. The table's own commit says where to go on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from autoglm import fail_points
from autoglm.contracts.change_event import ChangeEvent, DeadLetter, OffsetRange, Partition
from autoglm.errors import CancelledError, FencedError
from autoglm.plugins.kinds import Broker, FeatureTable, Processor

_before_hint = fail_points.declare("hop5.before_hint", "rows committed, group offset not told")
FENCED_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Drained:
    """`version` is of the table after the last commit, None when there was nothing to commit."""

    rows: int
    dead: int
    version: int | None


@dataclass(kw_only=True)
class _Open:
    """What the next commit will hold."""

    rows: list[ChangeEvent]
    dead: list[DeadLetter]
    offsets: dict[Partition, OffsetRange]
    positions: dict[str, str]
    traceparent: str = ""


class Consumer:
    """One member that reads every partition; commits rows and offsets together."""

    def __init__(
        self,
        broker: Broker,
        table: FeatureTable,
        processor: Processor,
        *,
        project: str,
        group: str,
        topic: str,
        batch_rows: int,
    ) -> None:
        self._broker, self._table, self._processor = broker, table, processor
        self._project, self._group, self._topic = project, group, topic
        self._batch_rows = batch_rows

    def drain(self, cancel: threading.Event) -> Drained:
        """Commit all that the broker holds. Raises: CancelledError, StorageError, DataError."""
        rows = dead = fenced = 0
        version = None
        offsets = self._seek()
        while (opened := self._fill(offsets)) is not None:
            if cancel.is_set():
                raise CancelledError("processing was stopped.", next_step="The next call goes on.")
            try:
                version = self._table.commit(
                    opened.rows,
                    opened.dead,
                    opened.offsets,
                    positions=opened.positions,
                    traceparent=opened.traceparent,
                )
            except FencedError:
                # Somebody else committed these offsets: what they hold is not ours to write.
                fenced += 1
                if fenced == FENCED_ATTEMPTS:
                    raise
                offsets = self._seek()
                continue
            rows, dead = rows + len(opened.rows), dead + len(opened.dead)
            offsets |= {partition: r.end for partition, r in opened.offsets.items()}
            _before_hint()
            self._broker.hint(self._group, offsets)
        return Drained(rows=rows, dead=dead, version=version)

    def _seek(self) -> dict[Partition, int]:
        partitions = [
            Partition(group=self._group, topic=self._topic, number=number)
            for number in range(self._broker.num_partitions(self._topic))
        ]
        return {partition: self._table.next_offset(partition) for partition in partitions}

    def _fill(self, offsets: dict[Partition, int]) -> _Open | None:
        """Events from every partition, at most `batch_rows` in all; None when there are none."""
        opened = _Open(rows=[], dead=[], offsets={}, positions={})
        room = self._batch_rows
        for partition, offset in offsets.items():
            start = offset
            while room > 0:
                fetched = self._broker.fetch(self._topic, partition.number, offset, max_events=room)
                if fetched is None:
                    break
                self._take(opened, fetched.events)
                opened.positions[fetched.source] = fetched.position
                opened.traceparent = fetched.traceparent
                offset, room = fetched.range.end, room - len(fetched.events)
            if offset > start:
                opened.offsets[partition] = OffsetRange(start=start, end=offset)
        return opened if opened.offsets else None

    def _take(self, opened: _Open, events: Sequence[ChangeEvent]) -> None:
        processed = self._processor.process(events)
        opened.rows += processed.rows
        opened.dead += processed.dead
