"""broker ─► processor ─► feature table. The table's own commit says where to go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

from autoglm import fail_points
from autoglm.clock import Clock, SystemClock
from autoglm.contracts.change_event import ChangeEvent, DeadLetter, OffsetRange, Partition
from autoglm.contracts.event_columns import joined, num_bytes
from autoglm.errors import AutoGLMError, CancelledError, FencedError, StorageError
from autoglm.observability.logging import get_logger
from autoglm.plugins.kinds import Assignment, Broker, FeatureTable, Processor

_before_process = fail_points.declare("hop3.before_process", "events fetched, not processed")
_after_process = fail_points.declare("hop3.after_process", "events processed, not committed")
_before_hint = fail_points.declare("hop5.before_hint", "rows committed, group offset not told")
_after_hint = fail_points.declare("hop5.after_hint", "group offset told, nothing fetched since")
FENCED_ATTEMPTS = 5
COMMITS_PER_RETENTION = 50
BATCH_BYTES = 64 << 20
# A member asks this often within its lease: one lost beat does not cost it its partitions.
BEATS_PER_LEASE = 3
IDLE = timedelta(milliseconds=100)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drained:
    """`version` is of the table after the last commit, None when there was nothing to commit."""

    rows: int
    dead: int
    version: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """One commit, for figures: what came in, and where the member's partitions stand now."""

    events: Sequence[ChangeEvent]
    rows: int
    dead: int
    offsets: Mapping[Partition, int]
    version: int


@dataclass(kw_only=True)
class _Open:
    """What the next commit will hold."""

    parts: list[Sequence[ChangeEvent]] = field(default_factory=list)
    num_bytes: int = 0
    offsets: dict[Partition, OffsetRange] = field(default_factory=dict)
    positions: dict[str, str] = field(default_factory=dict)
    traceparent: str = ""
    events: Sequence[ChangeEvent] = ()
    rows: Sequence[ChangeEvent] = ()
    dead: Sequence[DeadLetter] = ()


class Consumer:
    """One member of a consumer group; commits rows and offsets together.

    `drain` reads every partition alone, `follow` those that the group gives to this member.
    """

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
        on_commit: Callable[[Committed], None] = lambda _committed: None,
        on_beat: Callable[[Mapping[Partition, int]], None] = lambda _offsets: None,
        clock: Clock | None = None,
    ) -> None:
        self._broker, self._table, self._processor = broker, table, processor
        self._project, self._group, self._topic = project, group, topic
        self._batch_rows, self._on_commit, self._on_beat = batch_rows, on_commit, on_beat
        self._clock = clock or SystemClock()
        self._commits = 0

    def drain(self, cancel: threading.Event) -> Drained:
        """Commit all that the broker holds. Raises: CancelledError, StorageError, DataError."""
        rows = dead = fenced = 0
        version = None
        everything = range(self._broker.num_partitions(self._topic))
        offsets = self._seek(everything)
        while (opened := self._fill(offsets)) is not None:
            if cancel.is_set():
                raise CancelledError("processing was stopped.", next_step="The next call goes on.")
            try:
                done = self._commit(opened, offsets, generation=None)
            except FencedError:
                # Somebody else committed these offsets: what they hold is not ours to write.
                fenced += 1
                if fenced == FENCED_ATTEMPTS:
                    raise
                offsets = self._seek(everything)
                continue
            rows, dead, version = rows + done.rows, dead + done.dead, done.version
        return Drained(rows=rows, dead=dead, version=version)

    def follow(self, cancel: threading.Event, *, member: str, lease: timedelta) -> None:
        """Be a member until cancelled: read what the group gives, commit, make room for others.

        Whatever fails, `member` leaves the group first. Raises: StorageError, DataError.
        """
        assignment = self._broker.join(self._group, self._topic, member=member, lease=lease)
        beat_every = lease.total_seconds() / BEATS_PER_LEASE
        next_beat = self._clock.monotonic() + beat_every
        offsets = self._seek(assignment.partitions)
        try:
            while not cancel.is_set():
                if self._clock.monotonic() >= next_beat:
                    renewed = self._renewed(assignment, member, lease)
                    next_beat = self._clock.monotonic() + beat_every
                    if renewed != assignment:
                        assignment, offsets = renewed, self._seek(renewed.partitions)
                    self._on_beat(offsets)
                opened = self._fill(offsets)
                if opened is None:
                    self._clock.wait(cancel, min(IDLE.total_seconds(), beat_every))
                    continue
                try:
                    self._commit(opened, offsets, generation=assignment.generation)
                except FencedError as error:
                    # Our partitions moved on without us: nothing of the open batch is ours.
                    get_logger().warning("refused as a stale member", cause=error.message)
                    assignment = self._renewed(assignment, member, lease)
                    offsets = self._seek(assignment.partitions)
        finally:
            # What ended this is the news; a member that cannot say so is left out by its lease.
            with suppress(AutoGLMError):
                self._broker.leave(self._group, self._topic, member=member)

    def _renewed(self, assignment: Assignment, member: str, lease: timedelta) -> Assignment:
        try:
            return self._broker.heartbeat(self._group, self._topic, member=member)
        except FencedError as error:
            get_logger().warning("joins again", cause=error.message)
            return self._broker.join(self._group, self._topic, member=member, lease=lease)

    def _seek(self, numbers: Sequence[int]) -> dict[Partition, int]:
        """See `seek`."""
        return seek(
            self._broker, self._table, group=self._group, topic=self._topic, numbers=numbers
        )

    def _fill(self, offsets: Mapping[Partition, int]) -> _Open | None:
        """Events of every partition, at most `batch_rows` in all, and no more once they take
        BATCH_BYTES; None when there are none.
        """
        opened, room = _Open(), self._batch_rows
        # First a fair share of each, so that all are under way; then whatever there is.
        for share in (-(-room // max(1, len(offsets))), room):
            for partition, start in offsets.items():
                room -= self._take(opened, partition, start, min(room, share))
        if not opened.offsets:
            return None
        _before_process()
        opened.events = joined(opened.parts)
        processed = self._processor.process(opened.events)
        opened.rows, opened.dead = processed.rows, processed.dead
        _after_process()
        return opened

    def _take(self, opened: _Open, partition: Partition, start: int, room: int) -> int:
        """Events of one partition from where `opened` stands; says how many came."""
        known = opened.offsets.get(partition)
        begin = offset = known.end if known else start
        taken = 0
        while taken < room and opened.num_bytes < BATCH_BYTES:
            fetched = self._broker.fetch(
                self._topic, partition.number, offset, max_events=room - taken
            )
            if fetched is None:
                break
            opened.parts.append(fetched.events)
            opened.num_bytes += num_bytes(fetched.events)
            opened.positions[fetched.source] = fetched.position
            opened.traceparent = fetched.traceparent
            offset, taken = fetched.range.end, taken + len(fetched.events)
        if offset > begin:
            opened.offsets[partition] = OffsetRange(start=start, end=offset)
        return taken

    def _commit(
        self, opened: _Open, offsets: dict[Partition, int], *, generation: int | None
    ) -> Committed:
        """Rows and offsets into the table, then the hint; `offsets` moves on.

        Raises: FencedError when the table is not where the batch begins.
        """
        version = self._table.commit(
            opened.rows,
            opened.dead,
            opened.offsets,
            positions=opened.positions,
            traceparent=opened.traceparent,
        )
        unfit = int(getattr(self._table, "num_unfit", 0))
        ends = {partition: r.end for partition, r in opened.offsets.items()}
        for partition in ends:
            del offsets[partition]
        offsets |= ends
        self._commits += 1
        _before_hint()
        self._tell(ends, generation)
        _after_hint()
        done = Committed(
            events=opened.events,
            rows=len(opened.rows) - unfit,
            dead=len(opened.dead) + unfit,
            offsets=dict(offsets),
            version=version,
        )
        self._on_commit(done)
        return done

    def _tell(self, ends: Mapping[Partition, int], generation: int | None) -> None:
        """The table has the rows: a broker that does not take the hint costs nothing but a figure,
        and must not make the caller read its offsets again.
        """
        try:
            self._broker.hint(self._group, ends, generation=generation)
            if self._commits % COMMITS_PER_RETENTION == 0:
                self._broker.retain(self._topic)
        except FencedError:
            return  # the next heartbeat says what this member reads now
        except AutoGLMError as error:
            get_logger().warning("the group's offsets are not told", cause=str(error))


def seek(
    broker: Broker, table: FeatureTable, *, group: str, topic: str, numbers: Sequence[int]
) -> dict[Partition, int]:
    """Where the table says that each partition goes on.

    Raises: StorageError broker.offset_gone when the broker has less than the table has read:
    it is another broker than the one that was read, and its first events would be passed by.
    """
    found = {}
    for number in numbers:
        partition = Partition(group=group, topic=topic, number=number)
        offset = table.next_offset(partition)
        end = broker.end_offset(topic, number)
        if offset > end:
            raise StorageError(
                f"topic {topic}, partition {number} ends at offset {end}; the feature"
                f" table has it up to {offset}. This is not the log that the table was read"
                " from.",
                code="broker.offset_gone",
                next_step="Put the log back; or delete the project's state, and all rows are"
                " read from the source again.",
            )
        found[partition] = offset
    return found
