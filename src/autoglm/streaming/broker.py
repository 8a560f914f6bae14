"""The embedded broker: a keyed, partitioned, replayable log in one SQLite file.

One Arrow batch per row of the log, several for values that are large together; events, source
position and producer epoch in one transaction (WAL, synchronous=FULL): what was acknowledged
survives a power cut.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from autoglm import fail_points
from autoglm.clock import Clock, SystemClock
from autoglm.contracts.change_event import ChangeBatch, ChangeEvent, OffsetRange, Partition
from autoglm.errors import FencedError, StorageError
from autoglm.plugins.kinds import Assignment, FetchedBatch
from autoglm.streaming import group_members
from autoglm.streaming.config import BrokerConfig
from autoglm.streaming.event_blob import from_blob, to_blob
from autoglm.streaming.position_name import name_of

BUSY_SECONDS = 30
PIECE_BYTES = 32 << 20

_before_commit = fail_points.declare("hop2.before_commit", "events written, not committed")
_after_commit = fail_points.declare("hop2.after_commit", "events committed, not acknowledged")

_SCHEMA = """
create table if not exists topic (name text primary key, partitions integer not null);
create table if not exists log (topic text, part integer, base integer, count integer not null,
  source text not null, position text not null, traceparent text not null, events blob not null,
  primary key (topic, part, base)) without rowid;
create table if not exists tail (topic text, part integer, next integer not null,
  primary key (topic, part));
create table if not exists producer (topic text, name text, epoch integer not null,
  position text not null, primary key (topic, name));
create table if not exists hint (grp text, topic text, part integer, next integer not null,
  primary key (grp, topic, part));
"""


class SqliteBroker:
    """Port Broker on one file, for any number of processes of one machine, one object per thread.

    Whole batches that every group has are dropped by `retain`; their room in the file is used
    again. Raises: StorageError storage.full, broker.partitions_changed, broker.offset_gone, …
    """

    def __init__(self, path: Path, *, partitions: int, clock: Clock | None = None) -> None:
        self._path, self._partitions = path, partitions
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        with _ours(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("pragma journal_mode=wal")
            self._connection.execute("pragma synchronous=full")
            self._connection.executescript(_SCHEMA + group_members.SCHEMA)
            self._file = path.stat().st_ino

    @classmethod
    def open(
        cls, config: BrokerConfig, *, project: str, state: Path, partitions: int
    ) -> SqliteBroker:
        """`broker.db` of the project's state."""
        return cls(state / "broker.db", partitions=partitions)

    def close(self) -> None:
        self._connection.close()

    def append(self, topic: str, batch: ChangeBatch, *, producer: str, epoch: int) -> None:
        by_partition: dict[int, list[ChangeEvent]] = {}
        num_partitions = self.num_partitions(topic)
        for change in batch.events:
            by_partition.setdefault(_partition_of(change.key, num_partitions), []).append(change)
        pieces = [
            (number, *piece)
            for number, events in by_partition.items()
            for piece in _pieces(events, batch.source)
        ]
        with self._transaction() as connection:
            row = connection.execute(
                "select epoch, position from producer where topic = ? and name = ?",
                (topic, producer),
            ).fetchone()
            if row is None or row[0] != epoch:
                raise FencedError(
                    f"producer {producer} has epoch {row[0] if row else 'none'}, not {epoch}.",
                    next_step="A newer collector has taken over; this one stops.",
                )
            if row[1] == batch.position:
                return
            for number, count, blob in pieces:
                base = self._tail(connection, topic, number)
                connection.execute(
                    "insert into log values (?, ?, ?, ?, ?, ?, ?, ?)",
                    (topic, number, base, count, batch.source, name_of(batch.position),
                     batch.traceparent, blob),
                )  # fmt: skip
                connection.execute(
                    "insert or replace into tail values (?, ?, ?)",
                    (topic, number, base + count),
                )
            connection.execute(
                "update producer set position = ? where topic = ? and name = ?",
                (batch.position, topic, producer),
            )
            _before_commit()
        _after_commit()

    def new_epoch(self, topic: str, producer: str) -> int:
        """Take over as `producer`: every earlier epoch is refused from now on."""
        self.num_partitions(topic)
        with self._transaction() as connection:
            connection.execute(
                "insert into producer values (?, ?, 1, '')"
                " on conflict (topic, name) do update set epoch = epoch + 1",
                (topic, producer),
            )
            return int(
                connection.execute(
                    "select epoch from producer where topic = ? and name = ?", (topic, producer)
                ).fetchone()[0]
            )

    def position(self, topic: str, producer: str) -> str:
        """Position stored with the producer's last batch, `""` before the first."""
        row = self._read(
            "select position from producer where topic = ? and name = ?", (topic, producer)
        )
        return str(row[0]) if row else ""

    def num_partitions(self, topic: str) -> int:
        row = self._read("select partitions from topic where name = ?", (topic,))
        if row is None:
            with self._transaction() as connection:
                connection.execute(
                    "insert or ignore into topic values (?, ?)", (topic, self._partitions)
                )
            return self.num_partitions(topic)
        if row[0] != self._partitions:
            raise StorageError(
                f"topic {topic} has {row[0]} partitions for life; the configuration says"
                f" {self._partitions}.",
                code="broker.partitions_changed",
                next_step=f"Set data.partitions: {row[0]}.",
            )
        return int(row[0])

    def begin_offset(self, topic: str, partition: int) -> int:
        row = self._read(
            "select min(base) from log where topic = ? and part = ?", (topic, partition)
        )
        return self.end_offset(topic, partition) if row is None or row[0] is None else int(row[0])

    def end_offset(self, topic: str, partition: int) -> int:
        row = self._read("select next from tail where topic = ? and part = ?", (topic, partition))
        return int(row[0]) if row else 0

    def fetch(
        self, topic: str, partition: int, offset: int, *, max_events: int
    ) -> FetchedBatch | None:
        """At most one stored batch, from `offset` on."""
        row = self._read(
            "select base, source, position, traceparent, events from log where topic = ?"
            " and part = ? and base <= ? and base + count > ? order by base desc limit 1",
            (topic, partition, offset, offset),
        )
        if row is None:
            self._refuse_gone(topic, partition, offset)
            return None
        base, source, position, traceparent, blob = row
        skip = offset - base
        whole = from_blob(
            blob, partition=partition, base=base, source=source, traceparent=traceparent
        )
        events = whole[skip : skip + max_events]
        return FetchedBatch(
            events=events,
            range=OffsetRange(start=offset, end=offset + len(events)),
            source=source,
            position=position,
            traceparent=traceparent,
        )

    def join(self, group: str, topic: str, *, member: str, lease: timedelta) -> Assignment:
        num_partitions = self.num_partitions(topic)
        with self._transaction() as connection:
            return group_members.join(
                connection,
                group,
                topic,
                member,
                lease=lease.total_seconds(),
                num_partitions=num_partitions,
                now=self._now(),
            )

    def heartbeat(self, group: str, topic: str, *, member: str) -> Assignment:
        num_partitions = self.num_partitions(topic)
        with self._transaction() as connection:
            found = group_members.heartbeat(
                connection, group, topic, member, num_partitions=num_partitions, now=self._now()
            )
        if found is None:
            raise FencedError(
                f"member {member} of group {group} let its lease run out.",
                next_step="It drops what it holds and joins again.",
            )
        return found

    def leave(self, group: str, topic: str, *, member: str) -> None:
        num_partitions = self.num_partitions(topic)
        with self._transaction() as connection:
            group_members.leave(
                connection, group, topic, member, num_partitions=num_partitions, now=self._now()
            )

    def hint(
        self, group: str, offsets: Mapping[Partition, int], *, generation: int | None = None
    ) -> None:
        with self._transaction() as connection:
            for topic in {partition.topic for partition in offsets} if generation else ():
                newest = group_members.newest_generation(connection, group, topic)
                if newest != generation:
                    raise FencedError(
                        f"group {group} is in generation {newest}, not {generation}.",
                        next_step="Ask for the new assignment by a heartbeat.",
                    )
            connection.executemany(
                "insert or replace into hint values (?, ?, ?, ?)",
                [(group, p.topic, p.number, offset) for p, offset in offsets.items()],
            )

    def hints(self, group: str, topic: str) -> Mapping[int, int]:
        with self._lock, _ours(self._path):
            return dict(
                self._connection.execute(
                    "select part, next from hint where grp = ? and topic = ?", (group, topic)
                ).fetchall()
            )

    def retain(self, topic: str) -> int:
        with self._transaction() as connection:
            # A group that has read nothing of a partition yet needs all of it.
            groups = "select grp from hint where topic = ? union select grp from generation"
            count = connection.execute(
                f"select count(*) from ({groups} where topic = ?)", (topic, topic)
            ).fetchone()
            gone = 0
            for part, lowest, told in connection.execute(
                "select part, min(next), count(*) from hint where topic = ? group by part", (topic,)
            ).fetchall():
                if told < count[0]:
                    continue
                below = "topic = ? and part = ? and base + count <= ?"
                arguments = (topic, part, lowest)
                row = connection.execute(
                    f"select coalesce(sum(count), 0) from log where {below}", arguments
                ).fetchone()
                if row[0]:
                    connection.execute(f"delete from log where {below}", arguments)
                gone += int(row[0])
            return gone

    def _refuse_gone(self, topic: str, partition: int, offset: int) -> None:
        begin = self.begin_offset(topic, partition)
        if offset < begin:
            raise StorageError(
                f"topic {topic}, partition {partition}: offset {offset} is asked for, the oldest"
                f" that is kept is {begin}. What lies between was in a table that had it.",
                code="broker.offset_gone",
                next_step="Put the feature table back; or delete the project's state, and all"
                " rows are read from the source again.",
            )

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _tail(self, connection: sqlite3.Connection, topic: str, number: int) -> int:
        row = connection.execute(
            "select next from tail where topic = ? and part = ?", (topic, number)
        ).fetchone()
        return int(row[0]) if row else 0

    def _read(self, query: str, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        with self._lock, _ours(self._path):
            row: tuple[Any, ...] | None = self._connection.execute(query, arguments).fetchone()
            return row

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _ours(self._path):
            self._refuse_replaced()
            self._connection.execute("begin immediate")
            try:
                yield self._connection
                self._connection.execute("commit")
            except BaseException:
                # A full disk has rolled back already.
                if self._connection.in_transaction:
                    self._connection.execute("rollback")
                raise

    def _refuse_replaced(self) -> None:
        """What is written into a file that was deleted is gone when we close it."""
        try:
            is_there = self._path.stat().st_ino == self._file
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise StorageError(
                f"{self._path} was deleted or replaced while it was open.",
                code="broker.replaced",
                next_step="Put the log back; or delete the project's state, and all rows are read"
                " from the source again.",
            )


@contextmanager
def _ours(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        is_full = "full" in str(error) or "space" in str(error)
        raise StorageError(
            f"{path}: {error}.",
            code="storage.full" if is_full else "storage.failed",
            next_step="Free disk space." if is_full else "Check the file and its permissions.",
        ) from error


def _pieces(events: list[ChangeEvent], source: str) -> list[tuple[int, bytes]]:
    """(events, blob) of rows of the log: whoever reads one holds all of it, and SQLite takes no
    value of a gigabyte.
    """
    blob = to_blob(events, source=source)
    if len(blob) <= PIECE_BYTES or len(events) == 1:
        return [(len(events), blob)]
    middle = len(events) // 2
    return [*_pieces(events[:middle], source), *_pieces(events[middle:], source)]


def _partition_of(key: str, num_partitions: int) -> int:
    data = key.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") % num_partitions
