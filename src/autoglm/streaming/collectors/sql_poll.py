"""Polls a table of any SQL database, in one of three declared modes.

    lag_window        rows whose cursor is at or above the last one seen (minus the window); a row
                      is told apart from its earlier self by its digest
    full_diff         all rows, compared with the digests of the last poll
    snapshot_cursor   PostgreSQL, by transaction: see snapshot_cursor.py

The position is all that a poll needs to know of the ones before; it is stored downstream with the
batch, in one transaction, so nothing is kept here.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, func, select

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent, Op
from autoglm.contracts.record import digest
from autoglm.errors import SourceError
from autoglm.observability.tracing import new_traceparent
from autoglm.streaming.collectors import cursor as cursors
from autoglm.streaming.collectors import snapshot_cursor
from autoglm.streaming.collectors.database import (
    column_names,
    duplicate_key,
    is_unique,
    open_database,
    plain,
    readable,
    refuse_twins,
    require_columns,
    table_clause,
)
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.row_key import RowKey

# Versions of one poll: poll number in the upper bits, row order in the lower 32.
POLL_SHIFT = 32


@dataclass
class _Position:
    """`seen` maps key → row digest: of the rows at the cursor's edge, or of all rows. `window`
    holds the same of this poll, with the cursor's value. `unit` is None until a number was seen.
    """

    poll: int = 0
    cursor: Any = None
    cursor_type: str = ""
    unit: int | None = None
    seen: dict[str, str] = field(default_factory=dict)
    window: dict[str, tuple[Any, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> _Position:
        if not text:
            return cls()
        if snapshot_cursor.XidPosition.is_one(text):  # polled by transactions until now
            xid = snapshot_cursor.XidPosition.read(text)
            return cls(poll=((xid.base + xid.xid) >> POLL_SHIFT) + 1)
        data = json.loads(zlib.decompress(base64.b64decode(text)))
        unit = data.get("unit")  # an older release did not ask
        return cls(data["poll"], data["cursor"], data["type"], unit, data["seen"])

    def write(self) -> str:
        data = {
            "poll": self.poll, "cursor": self.cursor, "type": self.cursor_type, "unit": self.unit,
            "seen": self.seen,
        }  # fmt: skip
        return base64.b64encode(zlib.compress(json.dumps(data).encode(), 1)).decode()

    def bound(self, lag: timedelta) -> Any:
        """Where the next poll begins, as the driver wants to compare it."""
        value = cursors.restored(self.cursor, self.cursor_type)
        return cursors.earlier(value, lag, self.unit or 0)

    def move(self, value: Any, now: cursors.Now, where: str) -> None:
        """On to the row with `value`, but never past `now`."""
        self.cursor, self.cursor_type = cursors.stored(value, where)
        if self.unit is None and isinstance(value, cursors.NUMBERS) and value > 0:
            self.unit = now.unit_of(value)
        kept = now.behind(value, self.unit or 0)
        if kept is not value:
            self.cursor, self.cursor_type = cursors.stored(kept, where)


class SqlPollSource:
    """Port Source on one table. Batches of at most `batch_rows` events."""

    def __init__(
        self,
        config: SourceConfig,
        *,
        project: str,
        base: Path,
        batch_rows: int,
        columns: Sequence[str] = (),
    ) -> None:
        """`columns` must be there besides the key and the cursor, or nothing is read: rows
        without them would be passed by and never read again.
        """
        self._config, self._project, self._base = config, project, base
        self._columns, self._key = columns, RowKey.of(config.key)
        self._batch_rows = batch_rows
        self._cursor = config.cursor if config.polls_by != "full_diff" else ""
        self.name = f"sql/{config.table}"
        self._where = f"table {config.table}"

    @property
    def promise(self) -> str:
        if self._config.polls_by == "snapshot_cursor":
            return (
                f"polls {self._where} by transaction ({self._config.cursor}): sees each row's last"
                " state before a poll, misses deletes; no late commit is lost, the longest open"
                " transaction of the server delays it"
            )
        if not self._cursor:
            return (
                f"full diff of {self._where}: sees each row's last state before a poll, and deletes"
            )
        lag = self._config.lag_window.total_seconds()
        late = f"no loss while every transaction is shorter than {lag:g} s" if lag else (
            "no loss while rows commit in the cursor's order"
        )  # fmt: skip
        return (
            f"polls {self._where} by {self._config.cursor}: sees each row's last state before a"
            f" poll, misses deletes; {late}"
        )

    def read(self, position: str) -> Iterator[ChangeBatch]:
        """Batches after `position`. Raises: SourceError."""
        engine = open_database(self._config.url, self._base)
        try:
            columns = column_names(engine, self._config.table, self._where)
            config = self._config
            key = self._key.columns
            wanted = [*key, *([self._cursor] if self._cursor else []), *self._columns]
            require_columns(wanted, columns, self._where)
            with readable(self._where), engine.connect() as connection:
                if config.polls_by == "snapshot_cursor":
                    found = self._by_transaction(connection, columns, position)
                else:
                    found = self._by_content(connection, columns, position)
                # Looked for when there is something new: a poll that finds nothing stays cheap.
                with closing(found):  # whoever stops reading leaves no statement open
                    for number, batch in enumerate(found):
                        if number == 0 and not is_unique(engine, config.table, key):
                            refuse_twins(engine, config.table, key, self._where)
                        yield batch
        finally:
            engine.dispose()

    @property
    def setup_sql(self) -> str:
        """What the table needs for this mode, as SQL; empty where it needs nothing."""
        if self._config.polls_by != "snapshot_cursor":
            return ""
        return snapshot_cursor.setup_sql(self._config)

    def _by_transaction(
        self, connection: Connection, columns: list[str], position: str
    ) -> Generator[ChangeBatch, None, None]:
        if snapshot_cursor.XidPosition.is_one(position):
            known = snapshot_cursor.XidPosition.read(position)
        else:
            polled = _Position.read(position).poll
            known = snapshot_cursor.XidPosition(base=(polled + 1) << POLL_SHIFT if polled else 0)
        self._refuse_null_cursors(connection)
        batch: list[ChangeEvent] = []
        rows = snapshot_cursor.read_rows(
            connection, self._config, columns, known, where=self._where,
            batch_rows=self._batch_rows,
        )  # fmt: skip
        for row, known in rows:
            content = {name: plain(value) for name, value in row.items()}
            version = known.base + known.xid
            batch.append(self._event(self._name(row), "upsert", content, version))
            if len(batch) == self._batch_rows:
                yield self._batch(batch, known.write())
                batch = []
        if batch:
            yield self._batch(batch, known.write())

    def _by_content(
        self, connection: Connection, columns: list[str], position: str
    ) -> Generator[ChangeBatch, None, None]:
        known = _Position.read(position)
        known.poll += 1
        now = None
        if self._cursor:
            self._refuse_null_cursors(connection)
            now = cursors.Now.at(connection)
            before = None
            if known.cursor is not None:  # the clock may have been ahead until now
                before = cursors.restored(known.cursor, known.cursor_type)
                known.move(before, now, self._where)
            if connection.dialect.name == "sqlite":
                self._refuse_mixed(connection, before)
        options = {"stream_results": True, "yield_per": self._batch_rows}
        query = self._query(columns, known)
        with connection.execution_options(**options).execute(query) as found:
            rows = (dict(zip(columns, row, strict=True)) for row in found)
            events = self._by_cursor(rows, known, now) if now else self._diff(rows, known)
            yield from self._batches(events, known)

    def _query(self, columns: list[str], known: _Position) -> Select[Any]:
        source = table_clause(self._config.table, columns)
        query = select(*source.c)
        keys = [source.c[name] for name in self._key.columns]
        if not self._cursor:
            return query.order_by(*keys)
        cursor = source.c[self._config.cursor]
        if known.cursor is not None:
            query = query.where(cursor >= known.bound(self._config.lag_window))
        return query.order_by(cursor, *keys)

    def _refuse_null_cursors(self, connection: Connection) -> None:
        source = table_clause(self._config.table, [self._config.cursor])
        missing = source.c[self._config.cursor].is_(None)
        count = connection.execute(
            select(func.count()).select_from(source).where(missing)
        ).scalar_one()
        if count:
            raise SourceError(
                f"{count} rows of {self._where} have no {self._config.cursor}; polls miss them.",
                code="source.null_cursor",
                next_step="Fill the column, or leave data.source.cursor out.",
            )

    def _refuse_mixed(self, connection: Connection, before: Any) -> None:
        """SQLite keeps several types in one column, and sorts by type first: rows of a type below
        that of the cursor would never be read.
        """
        column = table_clause(self._config.table, [self._config.cursor]).c[self._config.cursor]
        # Each of its own: of both at once an index would be of no use.
        ends = [connection.scalar(select(end(column))) for end in (func.min, func.max)]
        cursors.refuse_mixed([before, *ends], f"{self._where}: {self._config.cursor}")

    def _refuse_future(self, value: Any, row: Mapping[str, Any], now: cursors.Now) -> None:
        if now.refuses(value):
            raise SourceError(
                f"{self._where}: {self._config.cursor} of the row {self._name(row)} is {value},"
                " more than a day ahead of the clock.",
                code="source.clock_ahead",
                next_step="Correct the row, or the clock of this machine or the database's;"
                " nothing was passed by.",
            )

    def _by_cursor(
        self, rows: Iterator[Mapping[str, Any]], known: _Position, now: cursors.Now
    ) -> Iterator[ChangeEvent]:
        where = f"{self._where}: {self._config.cursor}"
        for index, row in enumerate(rows):
            value = row[self._config.cursor]
            self._refuse_future(value, row, now)
            key, content = self._name(row), {name: plain(v) for name, v in row.items()}
            row_digest = digest(content, size=8)
            known.move(value, now, where)
            known.window[key] = (value, row_digest)
            if known.seen.get(key) != row_digest:
                yield self._event(key, "upsert", content, _version(known, index))

    def _diff(self, rows: Iterator[Mapping[str, Any]], known: _Position) -> Iterator[ChangeEvent]:
        before, present, index = dict(known.seen), set(), 0
        for row in rows:
            key, content = self._name(row), {name: plain(v) for name, v in row.items()}
            if key in present:
                raise duplicate_key(self._where, self._key.columns, self._key.parts(key))
            present.add(key)
            row_digest = digest(content, size=8)
            if before.get(key) != row_digest:
                known.seen[key] = row_digest
                yield self._event(key, "upsert", content, _version(known, index))
                index += 1
        for key in sorted(set(before) - present):
            del known.seen[key]
            yield self._event(key, "delete", {}, _version(known, index))
            index += 1

    def _batches(self, events: Iterator[ChangeEvent], known: _Position) -> Iterator[ChangeBatch]:
        batch: list[ChangeEvent] = []
        for change in events:
            batch.append(change)
            # `events` is lazy: no row after this one has moved `known` on yet.
            if len(batch) == self._batch_rows:
                yield self._batch(batch, self._position(known))
                batch = []
        if batch:
            yield self._batch(batch, self._position(known))

    def _position(self, known: _Position) -> str:
        """With a cursor, the edge is what the next poll will read again."""
        if self._cursor:
            floor = known.bound(self._config.lag_window)
            known.window = {k: v for k, v in known.window.items() if not v[0] < floor}
            edge = {k: row_digest for k, (_, row_digest) in known.window.items()}
            return replace(known, seen=edge).write()
        return known.write()

    def _batch(self, events: list[ChangeEvent], position: str) -> ChangeBatch:
        return ChangeBatch(
            project=self._project,
            source=self.name,
            events=tuple(events),
            position=position,
            traceparent=new_traceparent(),
        )

    def _event(self, key: str, op: Op, row: Mapping[str, Any], version: int) -> ChangeEvent:
        return ChangeEvent(
            project=self._project,
            source=self.name,
            key=key,
            op=op,
            version=version,
            row=row,
            committed_at=datetime.now(UTC),
        )

    def _name(self, row: Mapping[str, Any]) -> str:
        name = self._key.name_of(row)
        if not name:
            raise SourceError(
                f"{self._where} has a row without {self._key}.",
                code="source.null_key",
                next_step="Choose a key that every row has.",
            )
        return name


def _version(known: _Position, index: int) -> int:
    return (known.poll << POLL_SHIFT) + index
