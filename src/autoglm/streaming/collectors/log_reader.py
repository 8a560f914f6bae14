"""Messages of a log → change events, with the position after each. Pure but for `look_up`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from autoglm.contracts.change_event import ChangeEvent
from autoglm.errors import SourceError
from autoglm.streaming.collectors.events import Maker
from autoglm.streaming.collectors.log_position import LogPosition
from autoglm.streaming.collectors.pgoutput import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    Relation,
    Row,
    Truncate,
    Update,
)
from autoglm.streaming.row_key import RowKey

BATCH_BYTES = 64 << 20  # of values; few rows of megabytes fill a batch too


class LogReader:
    """`look_up(column, row)` reads a value that the log left out, by the row's key: a tuple of it,
    None if gone. It is asked for `columns` too that the table lacked when the log was written.
    """

    def __init__(
        self,
        known: LogPosition,
        make: Maker,
        *,
        key: RowKey,
        table: str,
        number: int,
        truncate: str,
        look_up: Callable[[str, Row], tuple[Any] | None],
        columns: Sequence[str] = (),
    ) -> None:
        self.events: list[ChangeEvent] = []
        self.is_inside = False  # of a transaction
        self._known, self._make, self._key, self._table = known, make, key, table
        self._columns = columns
        self._truncate, self._look_up = truncate, look_up
        self._version, self._skip, self._count = known.version, 0, 0
        self._within = self._xid = 0
        self._at = datetime.now(UTC)
        self._since, self._num_bytes = 0.0, 0
        self._number, self._foreign = number, set[int]()

    @property
    def lsn(self) -> int:
        """All transactions that end here or before are in events taken or waiting."""
        return self._known.lsn

    def reached(self, lsn: int) -> None:
        """Up to here the log has nothing of ours, and no transaction is open."""
        self._known = replace(self._known, lsn=max(self._known.lsn, lsn))

    def waited(self) -> float:
        """Seconds since the first event that waits."""
        return time.monotonic() - self._since

    def is_full(self, batch_rows: int) -> bool:
        """Whether what waits is a batch, by its rows or by its size."""
        return len(self.events) >= batch_rows or (
            bool(self.events) and self._num_bytes >= BATCH_BYTES
        )

    def taken(self) -> str:
        """The position after the waiting events, which are forgotten."""
        self.events = []
        known = replace(
            self._known,
            version=self._version,
            # Before the half-read transaction comes again, what was read of it is still so.
            within=self._within if self.is_inside else self._known.within,
            count=self._count if self.is_inside else self._known.count,
        )
        return known.write()

    def take(self, message: Message | None) -> None:
        """Changes of another table of the publication are passed by.

        Raises: SourceError source.truncated.
        """
        if isinstance(message, (Insert, Update, Delete)):
            if message.relation.number not in self._foreign and self._is_new():
                self._change(message)
        elif isinstance(message, Begin):
            self.is_inside, self._at, self._xid = True, message.committed_at, message.xid
            self._count = 0
            self._within = message.commit_lsn
            # Stopped in the middle of this very transaction: what was read of it is not read again.
            known = self._known
            self._skip = known.count if known.within == message.commit_lsn else 0
        elif isinstance(message, Commit):
            self._commit(message)
        elif isinstance(message, Relation):
            self._relation(message)
        elif isinstance(message, Truncate):
            is_ours = any(r.number not in self._foreign for r in message.relations)
            if is_ours and self._is_new():
                self._truncated()

    def _change(self, message: Insert | Update | Delete) -> None:
        if isinstance(message, Insert):
            self._upsert(message.row)
        elif isinstance(message, Update):
            self._update(message)
        else:
            self._delete(message.before)

    def _is_new(self) -> bool:
        """Counts the change; False for one that was read before."""
        self._count += 1
        if self._known.lsn > self._within:  # the whole transaction was
            return False
        return self._count > self._skip

    def _commit(self, message: Commit) -> None:
        self.is_inside = False
        lsn = max(self._known.lsn, message.end_lsn)
        parts = tuple(part for part in self._known.parts if message.commit_lsn < part.until)
        self._known = replace(self._known, lsn=lsn, within=0, count=0, parts=parts)

    def _next_version(self) -> int:
        """Grows with commits and within them, whatever the sizes of transactions are."""
        self._version = max(self._version + 1, self._within)
        return self._version

    def _add(self, event: ChangeEvent) -> None:
        if not self.events:
            self._since, self._num_bytes = time.monotonic(), 0
        self.events.append(event)
        self._num_bytes += sum(len(v) for v in event.row.values() if type(v) is str)

    def _upsert(self, row: Row) -> None:
        key = self._key.name_of(row)
        if not key:
            self._refuse_unnamed(row)
            return self._dead(row, "source.null_key", f"the row has no {self._key}")
        if self._known.parts and self._has_seen(key):
            return None
        if not self._completed(row, (n for n in self._columns if n not in row)):
            return None
        return self._add(self._make.upsert(key, row, self._next_version(), self._at))

    def _update(self, message: Update) -> None:
        row, before = message.row, message.before or {}
        # First of all: the row may be gone under its new name too, and what is lost is lost there.
        if (old := self._key.name_of(before)) and old != self._key.name_of(row):
            self._delete(before)
        if self._completed(row, [name for name, value in row.items() if value is UNCHANGED]):
            self._upsert(row)

    def _completed(self, row: Row, names: Iterable[str]) -> bool:
        """What the log does not hold is as it is now; a dead letter and False if the row is gone.

        Raises: SourceError source.no_column for a column that is not there now either.
        """
        for name in names:
            found = self._look_up(name, row)
            if found is None:
                row[name] = None
                self._dead(row, "source.unchanged_lost",
                           f"the log does not hold {name}, and the row is gone")  # fmt: skip
                return False
            row[name] = found[0]
        return True

    def _refuse_unnamed(self, row: Row) -> None:
        """The key had another name, or no column at all, when the row was written: nobody can tell
        whose it is, and the log will never say it in another way.
        """
        missing = next((name for name in self._key.columns if name not in row), None)
        if missing is not None:
            raise SourceError(
                f"the table {self._table} had no column {missing!r} when a row was written at"
                f" {self._at.isoformat()}; it had {', '.join(row)}.",
                code="source.no_column",
                next_step="Set data.source.slot to a new name: the table is read anew (what was"
                " deleted meanwhile stays learnt).",
            )

    def _delete(self, before: Row) -> None:
        key = self._key.name_of(before)
        if not key:
            return self._dead(before, "source.null_key", f"a deleted row has no {self._key}")
        if self._known.parts and self._has_seen(key):
            return None
        return self._add(self._make.delete(key, self._next_version(), self._at))

    def _has_seen(self, key: str) -> bool:
        """Whether the snapshot that read this key had the transaction's change already."""
        part = self._known.part_of(key, self._key)
        return part is not None and part.has_seen(self._xid)

    def _dead(self, row: Row, code: str, cause: str) -> None:
        where = f"change {self._count} of the transaction at {self._within}"
        version = self._next_version()
        self._add(self._make.dead(where, row, code=code, cause=cause, version=version, at=self._at))

    def _relation(self, relation: Relation) -> None:
        """The log knows a table by the name it had: the number tells a renamed one."""
        if relation.number != self._number and relation.name != self._table:
            self._foreign.add(relation.number)

    def _truncated(self) -> None:
        if self._truncate == "keep":
            return
        raise SourceError(
            f"the table {self._table} was emptied (truncate) at {self._at.isoformat()}: the log"
            " does not say which rows it had.",
            code="source.truncated",
            next_step="Set data.source.truncate: keep to go on with what was learnt; to forget it"
            " start from an empty state folder.",
        )
