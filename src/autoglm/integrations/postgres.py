"""Listens to PostgreSQL: a snapshot of the table, then its logical replication, without a seam.

Tested against PostgreSQL 15.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent
from autoglm.errors import SourceError
from autoglm.integrations.postgres_stream import ReplicationStream
from autoglm.streaming.collectors.events import Maker
from autoglm.streaming.collectors.log_position import LogPosition, Part
from autoglm.streaming.collectors.log_reader import LogReader
from autoglm.streaming.collectors.log_table import BPCHAR, BY_ROOT, INET, LogTable, written
from autoglm.streaming.collectors.pgoutput import Decoder, Row, converter
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.row_key import RowKey

# Values of the stream and of the snapshot are text in this form, whatever the server's own is.
SESSION = (
    "-c datestyle=ISO -c intervalstyle=postgres -c timezone=UTC -c bytea_output=hex"
    " -c extra_float_digits=1"
)
LINGER_SECONDS, WAIT_SECONDS, LOOK_SECONDS, FREE_SECONDS = 0.02, 0.2, 10.0, 5.0
SETUP = """\
create publication {publication} for table {table}{options};
-- An update that leaves a large value (over 2 kB) alone does not send it, unless the whole row is
-- kept in the log. Without this it is read again by its key:
-- alter table {table} replica identity full;
"""
LAG_ADVICE = (
    "max_slot_wal_keep_size is unlimited: while nobody reads, the slot keeps all of the server's"
    " log. Set it to what the disk can spare; a slot that falls behind it is lost, and says so."
)


class PostgresSource:
    """Port Source; also `follow` and `acknowledge`. One reader per slot."""

    def __init__(
        self,
        config: SourceConfig,
        *,
        project: str,
        base: Path,
        batch_rows: int,
        columns: Sequence[str] = (),
    ) -> None:
        del base
        self._config, self._batch_rows, self._columns = config, batch_rows, columns
        self._key = RowKey.of(config.key)
        self._table = LogTable(config.table, key=self._key, columns=columns)
        self._quoted = sql.Identifier(self._table.schema, self._table.name)
        plain = re.sub(r"[^a-z0-9_]", "_", f"autoglm_{project}_{self._table.name}".lower())
        self._slot = config.slot or plain[:63]
        self.name = f"postgres/{self._slot}"
        self._make = Maker(project, self.name)
        self._confirmed = 0

    @property
    def promise(self) -> str:
        return (
            f"listens to {self._where} by the slot {self._slot}: sees each change in the order of"
            " commits, deletes too; a truncate "
            + ("stops it" if self._config.truncate == "stop" else "is passed by")
        )

    @property
    def setup_sql(self) -> str:
        """What the table's owner runs once. The slot is made by the first read."""
        with closing(self._connect()) as connection, connection.cursor() as cursor:
            options = f" with ({BY_ROOT})" if self._table.is_partitioned(cursor) else ""
            text = sql.SQL(SETUP).format(
                publication=sql.Identifier(self._slot), table=self._quoted, options=sql.SQL(options)
            )
            return str(text.as_string(cursor))

    def read(self, position: str) -> Iterator[ChangeBatch]:
        """The snapshot if it is not finished, then what was committed before this call.

        Raises: SourceError (source.slot_lost, source.slot_in_use, source.truncated, …).
        """
        yield from self._stream(LogPosition.read(position), None)

    def follow(self, position: str, *, cancel: threading.Event) -> Iterator[ChangeBatch]:
        """As `read`, then on and on; ends when cancelled."""
        yield from self._stream(LogPosition.read(position), cancel)

    def acknowledge(self, position: str) -> None:
        """The broker has it: the server may forget what lies before."""
        known = LogPosition.read(position)
        if known.after is None:
            self._confirmed = max(self._confirmed, known.lsn)

    def status(self) -> dict[str, object]:
        """Lag and state of the slot, and advice. Raises: SourceError."""
        with self._asking() as cursor:
            cursor.execute(
                "select active, wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(),"
                " confirmed_flush_lsn), pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn),"
                " current_setting('max_slot_wal_keep_size')"
                " from pg_replication_slots where slot_name = %s",
                (self._slot,),
            )
            row = cursor.fetchone()
            self._table.check(cursor, self._slot)
        if row is None:
            return {"slot": self._slot, "state": "not made yet", "advice": ""}
        active, state, lag, kept, limit = row
        return {
            "slot": self._slot,
            "state": f"{'read now' if active else 'not read'}, {state}",
            "lag_bytes": int(lag or 0),
            "kept_bytes": int(kept or 0),
            "advice": LAG_ADVICE if limit == "-1" else "",
        }

    def drop(self) -> str:
        """Remove the slot; the publication is its owner's. Raises: SourceError."""
        with self._asking() as cursor:
            self._wait_free(cursor)
            cursor.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
                " where slot_name = %s",
                (self._slot,),
            )
            return f"slot {self._slot} {'dropped' if cursor.rowcount else 'was not there'}"

    @property
    def _where(self) -> str:
        return self._table.where

    def _stream(self, known: LogPosition, cancel: threading.Event | None) -> Iterator[ChangeBatch]:
        with self._asking() as cursor:
            number = self._table.check(cursor, self._slot)
            self._table.columns(cursor)
            is_unique = self._table.is_unique(cursor)
            if known.after is not None and not is_unique:
                self._table.refuse_twins(cursor)
        with self._translated(), closing(self._connect(replication="database")) as listening:
            server = self._server(listening, known)
            if known.after is not None:
                for batch in self._snapshot(known, server, listening):
                    known = LogPosition.read(batch.position)
                    yield batch
            with closing(self._changes(known, listening, number, cancel)) as found:
                for batch in found:
                    if not is_unique:
                        self._refuse_twins_of(batch)
                    yield batch

    def _refuse_twins_of(self, batch: ChangeBatch) -> None:
        keys = [event.key for event in batch.events if event.op == "upsert"]
        if keys:
            with self._asking() as cursor:
                self._table.refuse_twins(cursor, keys)

    def _server(self, listening: Any, known: LogPosition) -> str:
        cursor = listening.cursor()
        cursor.execute("IDENTIFY_SYSTEM")
        server = str(cursor.fetchone()[0])
        if known.server not in ("", server):
            raise SourceError(
                f"{self._where} is on another server now (a restore?): the position means nothing.",
                code="source.other_server",
                next_step="Set data.source.slot to a new name: the table is read anew.",
            )
        return server

    # The snapshot: the slot first, then the rows that every transaction before it left.

    def _snapshot(self, known: LogPosition, server: str, listening: Any) -> Iterator[ChangeBatch]:
        slot = listening.cursor()
        exported = None
        with self._asking() as cursor:
            start = self._slot_start(cursor)
        if start is None:
            if known.lsn:
                raise self._slot_lost("it is gone")
            slot.execute(
                sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput EXPORT_SNAPSHOT").format(
                    sql.Identifier(self._slot)
                )
            )
            _name, text, exported, _plugin = slot.fetchone()
            start = _lsn(text)
        after = known.after or ""
        with closing(self._connect()) as connection, connection.cursor() as cursor:
            connection.set_autocommit(False)
            connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            connection.set_read_only(True)
            parts = known.parts
            if exported is not None:
                cursor.execute(sql.SQL("set transaction snapshot {}").format(exported))
            else:
                # Whoever began died: the rest is seen as it is now, and the log says since when.
                cursor.execute("select pg_current_snapshot()::text")
                seen = cursor.fetchone()[0]
                with self._asking() as other:
                    other.execute("select pg_current_wal_insert_lsn()::text")
                    until = _lsn(other.fetchone()[0])
                parts = (*parts, Part(known.last or after, seen, until))
            version = max(known.version, start)
            known = LogPosition(server, start, 0, 0, version, after, parts, known.last)
            yield from self._rows(connection, cursor, known)

    def _rows(self, connection: Any, cursor: Any, known: LogPosition) -> Iterator[ChangeBatch]:
        columns = self._table.columns(cursor)
        names = [name for name, _type in columns]
        converters = [converter(type_oid) for _name, type_oid in columns]
        texts_of = {name: _text(name, type_oid) for name, type_oid in columns}
        keys = [sql.SQL('({}) collate "C"').format(texts_of[name]) for name in self._key.columns]
        key, is_nameless = (
            sql.SQL(", ").join(keys),
            sql.SQL("(({}) is null)").format(sql.SQL(" || ").join(keys)),
        )
        values = sql.SQL(", ").join(texts_of.values())
        # Once begun it goes on behind the last key; "" is before all keys, and a key itself.
        passed = self._key.parts(known.after) if known.after else None
        # The key stands in the text: a name may hold what a text with arguments reads otherwise, %.
        rest = sql.SQL("where ({}) > ({}) or {}" if passed else "").format(
            key, sql.SQL(", ").join(map(sql.Literal, passed or ())), is_nameless
        )
        query = sql.SQL("select {} from {} {} order by {}, {}").format(
            values, self._quoted, rest, is_nameless, key
        )
        places = [names.index(name) for name in self._key.columns]
        batch, last, texts_of_last, num_rows = list[ChangeEvent](), "", (), 0
        with connection.cursor(name="snapshot") as rows:
            rows.itersize = min(self._batch_rows, 5_000)
            rows.execute(query)
            for texts in rows:
                num_rows += 1
                row = {
                    name: text if convert is None or text is None else convert(text)
                    for name, convert, text in zip(names, converters, texts, strict=True)
                }
                if not (name := self._key.name_of(row)):
                    batch.append(
                        self._make.dead(f"row {num_rows}: no key", row, code="source.null_key",
                                        cause=f"no {self._key}", version=known.version)
                    )  # fmt: skip
                else:
                    last, texts_of_last = name, texts
                    batch.append(self._make.upsert(name, row, known.version))
                if len(batch) == self._batch_rows:
                    if last:
                        after = self._key.name([texts_of_last[place] for place in places])
                        known = replace(known, after=after, last=last)
                    # With the count no two batches lead to one position, which would be one batch.
                    yield self._make.batch(batch, replace(known, count=num_rows).write())
                    batch = []
        yield self._make.batch(batch, replace(known, after=None, last="").write())

    # The log.

    def _changes(
        self, known: LogPosition, listening: Any, number: int, cancel: threading.Event | None
    ) -> Generator[ChangeBatch, None, None]:
        with self._asking() as asking:
            start = self._slot_start(asking)
            if start is None:
                raise self._slot_lost("it is gone")
            if start > known.lsn:
                raise self._slot_lost("it is ahead of what we have: another reader, or made anew")
            asking.execute("select pg_current_wal_flush_lsn()::text")
            target = _lsn(asking.fetchone()[0])
        options = {"proto_version": "1", "publication_names": f'"{self._slot}"'}
        stream = ReplicationStream(listening, self._slot, known.lsn, options)
        reader = LogReader(
            known, self._make, key=self._key, table=self._table.name, number=number,
            truncate=self._config.truncate, look_up=self._current, columns=self._columns,
        )  # fmt: skip
        decoder = Decoder()
        self._confirmed = known.lsn
        asked, looked = 0.0, time.monotonic()
        while cancel is None or not cancel.is_set():
            message = stream.read()
            if message is not None:
                reader.take(decoder.decode(message))
                if not reader.is_full(self._batch_rows):
                    continue
            elif reader.events and reader.waited() < LINGER_SECONDS:
                stream.wait(LINGER_SECONDS)
                continue
            if reader.events:
                yield self._make.batch(reader.events, reader.taken())
                stream.tell(self._confirmed)
                continue
            now = time.monotonic()
            if not reader.is_inside and stream.sent > reader.lsn:
                # Nothing of ours up to here: stored like a change before the server is told, so
                # that a slot that is ahead of the position was moved by somebody else.
                reader.reached(stream.sent)
                yield self._make.batch([], reader.taken())
            if cancel is None and not reader.is_inside and max(stream.sent, reader.lsn) >= target:
                break
            if now - asked >= WAIT_SECONDS:
                asked = now
                stream.tell(self._confirmed, asks=True)
            if now - looked >= LOOK_SECONDS:
                looked = now
                with self._asking() as asking:
                    self._table.check(asking, self._slot)
            stream.wait(WAIT_SECONDS)
        stream.tell(self._confirmed)

    def _current(self, column: str, of: Row) -> tuple[Any] | None:
        """A value that the log left out, as it is now; None when the row is gone."""
        with self._asking() as cursor:
            columns = dict(self._table.columns(cursor))
            # Compared as its own type: the server writes a time in another way than events do.
            is_it = [
                sql.SQL("{} = {}").format(
                    sql.Identifier(name), sql.Literal(written(columns[name], str(of.get(name))))
                )
                for name in self._key.columns
            ]
            query = sql.SQL("select {} from {} where {}").format(
                _text(column, columns[column]), self._quoted, sql.SQL(" and ").join(is_it)
            )
            try:
                cursor.execute(query)
            except pg.DataError:  # the key has another type by now: no row can be called that
                return None
            row = cursor.fetchone()
        if row is None:
            return None
        convert = converter(columns[column])
        return (row[0] if row[0] is None or convert is None else convert(row[0]),)

    # What must be there.

    def _wait_free(self, cursor: Any) -> None:
        """The server notices a reader's end a moment later than the reader."""
        end = time.monotonic() + FREE_SECONDS
        while time.monotonic() < end:
            cursor.execute(
                "select from pg_replication_slots where active and slot_name = %s", (self._slot,)
            )
            if cursor.rowcount == 0:
                return
            time.sleep(0.05)

    def _slot_start(self, cursor: Any) -> int | None:
        """Where the slot's stream would begin, None when there is no slot."""
        self._wait_free(cursor)
        cursor.execute(
            "select confirmed_flush_lsn::text, plugin, active, wal_status, database"
            " = current_database() from pg_replication_slots where slot_name = %s",
            (self._slot,),
        )
        row = cursor.fetchone()
        if row is None:
            return None
        start, plugin, active, state, is_here = row
        if plugin != "pgoutput" or not is_here:
            raise SourceError(
                f"the slot {self._slot} is another one's ({plugin}).",
                code="source.slot_in_use",
                next_step="Set data.source.slot to another name.",
            )
        if active:
            raise self._slot_in_use("somebody reads from it")
        if state == "lost":
            raise self._slot_lost("the server has dropped what it had kept for it")
        return _lsn(start)

    def _slot_lost(self, why: str) -> SourceError:
        return SourceError(
            f"the slot {self._slot} was lost ({why}): changes since the stored position are gone"
            " from the server's log.",
            code="source.slot_lost",
            next_step="Set data.source.slot to a new name: the table is read anew (what was"
            " deleted meanwhile stays learnt). `autoglm source status` advises on the limit.",
        )

    def _slot_in_use(self, why: str) -> SourceError:
        return SourceError(
            f"the slot {self._slot} is in use: {why}.",
            code="source.slot_in_use",
            retryable=True,
            next_step="One reader per slot: stop the other, or set data.source.slot.",
        )

    # Connections.

    def _connect(self, **more: Any) -> Any:
        url = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", self._config.url)
        try:
            return psycopg.connect(
                url, autocommit=True, options=SESSION, client_encoding="UTF8",
                application_name="autoglm", connect_timeout=10, **more,
            )  # fmt: skip
        except psycopg.Error as error:
            raise SourceError(
                f"{self._where}: {_first_line(error)}.",
                code="source.unreachable",
                retryable=True,
                next_step="Check data.source.url and that the server runs; it is tried again.",
            ) from error

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """A cursor of a short connection: the one that listens can answer nothing."""
        with self._translated(), closing(self._connect()) as connection:
            yield connection.cursor()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The driver's errors as ours."""
        try:
            yield
        except pg.ObjectInUse as error:
            raise self._slot_in_use(_first_line(error)) from error
        except (pg.UndefinedObject, pg.ObjectNotInPrerequisiteState) as error:
            if "slot" not in str(error):
                raise self._unreadable(error) from error
            raise self._slot_lost(_first_line(error)) from error
        except psycopg.Error as error:
            raise self._unreadable(error) from error
        except ValueError as error:
            raise SourceError(f"{self._where}: {error}.", code="source.bad_stream") from error

    def _unreadable(self, error: psycopg.Error) -> SourceError:
        is_passing = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
        return SourceError(
            f"{self._where}: {_first_line(error)}.",
            code="source.unreachable" if is_passing else "source.unreadable",
            retryable=is_passing,
            next_step="It is tried again."
            if is_passing
            else "wal_level must be logical, the user one with the right of replication.",
        )


def _text(name: str, type_oid: int) -> sql.Composable:
    """A column's value as the log says it. A cast to text leaves the blanks of a `char(n)` out, and
    adds to an `inet`.
    """
    form = "case when {0} is not null then format('%s', {0}) end"
    return sql.SQL(form if type_oid in (BPCHAR, INET) else "{0}::text").format(sql.Identifier(name))


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
