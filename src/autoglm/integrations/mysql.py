"""Listens to MariaDB or MySQL: a snapshot of the table, then the binary log, without a seam.

Tested against MariaDB 10.11. The log must be by rows, with whole rows and the columns' names.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pymysql
from pymysql.constants import FIELD_TYPE
from pymysql.cursors import SSCursor
from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.event import HeartbeatLogEvent, QueryEvent, XidEvent
from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent
from autoglm.errors import SourceError
from autoglm.integrations.mysql_log import LogEvents, nameless, place_of
from autoglm.streaming.collectors.database import duplicate_key, plain
from autoglm.streaming.collectors.events import Maker
from autoglm.streaming.collectors.log_position import LogPosition, Part
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.row_key import RowKey

HEARTBEAT_SECONDS = 0.5
NEEDED = {"log_bin": "ON", "binlog_format": "ROW", "binlog_row_image": "FULL",
          "binlog_row_metadata": "FULL"}  # fmt: skip
LOG_GONE = (1236, 1220, 1373)  # the server's codes for a position that it cannot send from
NO_TABLE, NO_DATABASE = 1146, 1049


class MysqlSource:
    """Port Source; also `follow`. A place in the log is its file's number and the byte in it."""

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
        self._address, self._key = _address(config.url), RowKey.of(config.key)
        self.name = f"mysql/{config.slot or config.table}"
        self._make = Maker(project, self.name)
        seed = hashlib.blake2b(f"{project}/{self.name}".encode(), digest_size=4).digest()
        number = 1_000 + int.from_bytes(seed, "big") % 2_000_000_000
        self._server_id = int(config.options.get("server_id", number))

    @property
    def promise(self) -> str:
        return (
            f"listens to {self._where} by the binary log: sees each change in the order of commits,"
            " deletes too; a truncate "
            + ("stops it" if self._config.truncate == "stop" else "is passed by")
        )

    def read(self, position: str) -> Iterator[ChangeBatch]:
        """The snapshot if it is not finished, then what the log holds now.

        Raises: SourceError (source.log_lost, source.truncated, source.log_settings, …).
        """
        yield from self._stream(LogPosition.read(position), None)

    def follow(self, position: str, *, cancel: threading.Event) -> Iterator[ChangeBatch]:
        """As `read`, then on and on; ends when cancelled."""
        yield from self._stream(LogPosition.read(position), cancel)

    def acknowledge(self, position: str) -> None:
        """The server keeps its log by age, whoever reads it."""

    def status(self) -> dict[str, object]:
        """Where the log ends and how long it is kept. Raises: SourceError."""
        with self._asking() as cursor:
            self._check(cursor)
            file, place = self._end(cursor)
            kept = _variable(cursor, "binlog_expire_logs_seconds")
        advice = "" if kept not in ("", "0") else "the log is kept until somebody purges it"
        return {"log": f"{file}:{place}", "kept_seconds": kept, "advice": advice}

    @property
    def _where(self) -> str:
        return f"table {self._config.table}"

    def _stream(self, known: LogPosition, cancel: threading.Event | None) -> Iterator[ChangeBatch]:
        with self._translated():
            with self._asking() as cursor:
                self._check(cursor)
                server, (file, end) = self._server(cursor), self._end(cursor)
                is_unique = self._is_unique(cursor)
                if known.after is not None and not is_unique:
                    self._refuse_twins(cursor)
            if known.server not in ("", server):
                raise self._log_lost("this is another server")
            if known.lsn > place_of(file, end):
                raise self._log_lost("the log ends before it")
            if known.after is not None:
                for batch in self._snapshot(known, server):
                    known = LogPosition.read(batch.position)
                    yield batch
            with closing(self._changes(known, file.rpartition(".")[0], cancel)) as found:
                for batch in found:
                    keys = [event.key for event in batch.events if event.op == "upsert"]
                    if keys and not is_unique:
                        with self._asking() as cursor:
                            self._refuse_twins(cursor, keys)
                    yield batch

    # The snapshot, and the place in the log that it is of.

    def _snapshot(self, known: LogPosition, server: str) -> Iterator[ChangeBatch]:
        with closing(self._connect()) as connection:
            with connection.cursor() as cursor:
                place = self._consistent(cursor)
                columns, types = self._column_names(cursor), self._types(cursor)
            after = known.after or ""
            is_first = not known.lsn
            start = place if is_first else known.lsn
            # A time is spelled in another order (9:00:00, 1 day, …): its snapshot begins anew, and
            # the log is read from where the first one was.
            goes_on = all(types.get(name) != "time" for name in self._key.columns)
            parts = known.parts
            # Whoever began died: the rest is of a later place; the log is passed by until there.
            if not is_first and (goes_on or after):
                parts = (*parts, Part(known.last or after, "", place))
            known = replace(
                known, server=server, lsn=start, version=max(known.version, start), after=after,
                parts=parts,
            )  # fmt: skip
            yield from self._rows(connection, columns, known, types=types, goes_on=goes_on)

    def _consistent(self, cursor: Any) -> int:
        """Begin a snapshot; the place in the log up to which it holds everything."""
        cursor.execute("set session transaction isolation level repeatable read")
        cursor.execute("start transaction with consistent snapshot")
        cursor.execute("show status like 'binlog_snapshot_%'")  # MariaDB tells it without a lock
        found = {name.lower(): value for name, value in cursor.fetchall()}
        if found.get("binlog_snapshot_file"):
            number = int(found["binlog_snapshot_position"])
            return place_of(found["binlog_snapshot_file"], number)
        cursor.execute("flush tables with read lock")
        try:
            cursor.execute("start transaction with consistent snapshot")
            return place_of(*self._end(cursor))
        finally:
            cursor.execute("unlock tables")

    def _rows(
        self, connection: Any, columns: list[str], known: LogPosition, *,
        types: Mapping[str, str], goes_on: bool,
    ) -> Iterator[ChangeBatch]:  # fmt: skip
        keys = [_ordered(name, types.get(name, "")) for name in self._key.columns]
        key, is_nameless = ", ".join(keys), " or ".join(f"{each} is null" for each in keys)
        batch, num_keys, num_rows = list[ChangeEvent](), len(keys), known.count
        last, texts_of_last = "", ()
        names = ", ".join(_quoted(name) for name in columns)
        passed = self._key.parts(known.after) if known.after else ()
        behind = [part.encode("utf-8", "surrogateescape") for part in passed]
        places = ", ".join("cast(%s as binary)" for _ in behind)
        rest = f"where ({key}) > ({places}) or {is_nameless}" if passed else ""
        with connection.cursor(SSCursor) as rows:
            query = (
                f"select {key}, {names} from {_quoted(self._config.table)} {rest}"
                f" order by ({is_nameless}), {key}"
            )
            rows.execute(query, behind)
            for found in rows:
                num_rows += 1
                values = zip(columns, found[num_keys:], strict=True)
                row = {name: plain(value) for name, value in values}
                if not (name := self._key.name_of(row)):
                    where = f"row {num_rows}: no key"
                    batch.append(nameless(self._make, self._key, row, known.version, where=where))
                else:
                    last, texts_of_last = name, found[:num_keys]
                    batch.append(self._make.upsert(name, row, known.version))
                if len(batch) == self._batch_rows:
                    if last and goes_on:
                        known = replace(known, after=self._key.name(texts_of_last), last=last)
                    # With the count no two batches lead to one position, which would be one batch.
                    yield self._make.batch(batch, replace(known, count=num_rows).write())
                    batch = []
        yield self._make.batch(batch, replace(known, after=None, last="", count=0).write())

    # The log.

    def _changes(
        self, known: LogPosition, base: str, cancel: threading.Event | None
    ) -> Generator[ChangeBatch, None, None]:
        with self._asking() as cursor:
            types = self._types(cursor)
        reader = self._open_log(known, base, is_waiting=cancel is not None)
        log = LogEvents(
            known, self._make, self._config, types=types, columns=self._columns,
            look_up=self._current,
        )  # fmt: skip
        try:
            while cancel is None or not cancel.is_set():
                event = reader.fetchone()
                if event is not None:
                    at = datetime.fromtimestamp(event.timestamp or time.time(), UTC)
                    for _row in log.take(event, reader, at):
                        if len(log.events) >= self._batch_rows:
                            yield self._make.batch(log.events, log.taken())
                is_quiet = event is None or isinstance(event, HeartbeatLogEvent)
                if log.events and (is_quiet or log.has_waited()):
                    yield self._make.batch(log.events, log.taken())
                if event is None and cancel is None:
                    break
        finally:
            reader.close()

    def _open_log(self, known: LogPosition, base: str, *, is_waiting: bool) -> Any:
        host, port, user, password, database = self._address
        return BinLogStreamReader(
            connection_settings={"host": host, "port": port, "user": user, "password": password},
            server_id=self._server_id,
            resume_stream=True,
            blocking=is_waiting,
            log_file=f"{base}.{known.lsn >> 32:06}",
            log_pos=known.lsn & 0xFFFFFFFF,
            only_events=[
                QueryEvent, XidEvent, WriteRowsEvent, UpdateRowsEvent, DeleteRowsEvent,
                HeartbeatLogEvent,
            ],
            only_tables=[self._config.table],
            only_schemas=[database],
            slave_heartbeat=HEARTBEAT_SECONDS if is_waiting else None,
            is_mariadb=False,  # positions of files are the same in both
            enable_logging=False,
            pymysql_wrapper=_opened,
        )  # fmt: skip

    def _current(self, column: str, row: Mapping[str, Any]) -> tuple[Any] | None:
        """A value that the log has under no name that we know, as it is now; None: the row is gone.

        Raises: SourceError source.no_column.
        """
        is_it = " and ".join(f"{_quoted(name)} = %s" for name in self._key.columns)
        with self._asking() as cursor:
            self._require([column], self._column_names(cursor))
            cursor.execute(
                f"select {_quoted(column)} from {_quoted(self._config.table)} where {is_it}",
                [row[name] for name in self._key.columns],
            )
            found = cursor.fetchone()
        return None if found is None else (plain(found[0]),)

    # What must be there.

    def _check(self, cursor: Any) -> None:
        """Raises: SourceError source.log_settings, source.no_table, source.no_column."""
        for name, wanted in NEEDED.items():
            found = _variable(cursor, name)
            if found.upper() != wanted:
                raise SourceError(
                    f"the server's {name} is {found or 'not known'}; listening needs {wanted}.",
                    code="source.log_settings",
                    next_step=f"Set {name} = {wanted} in the server's configuration.",
                )
        self._require((*self._key.columns, *self._columns), self._column_names(cursor))

    def _require(self, wanted: Sequence[str], columns: Sequence[str]) -> None:
        for name in wanted:
            if name not in columns:
                raise SourceError(
                    f"{self._where} has no column {name!r}.",
                    code="source.no_column",
                    next_step="Bring it back: reading goes on where it was. There are:"
                    f" {', '.join(columns)}.",
                )

    def _is_unique(self, cursor: Any) -> bool:
        """Whether an index holds that the key names a row."""
        cursor.execute(f"show index from {_quoted(self._config.table)}", ())
        fields = [column[0] for column in cursor.description]
        parts: dict[str, list[Any]] = {}
        for row in (dict(zip(fields, values, strict=True)) for values in cursor.fetchall()):
            is_whole = not row["Non_unique"] and row["Sub_part"] is None
            parts.setdefault(row["Key_name"], []).append(row["Column_name"] if is_whole else None)
        return any(set(columns) <= set(self._key.columns) for columns in parts.values())

    def _refuse_twins(self, cursor: Any, keys: Sequence[str] | None = None) -> None:
        """Two rows of one key would be one row here, and each overwrite the other.

        Raises: SourceError source.duplicate_key.
        """
        columns = [_quoted(name) for name in self._key.columns]
        key = ", ".join(columns)
        there = " and ".join(f"{name} is not null" for name in columns)
        only = there
        if keys is not None:
            # A time is compared as one: events spell it in another way than a cast does.
            cursor.execute(f"select {key} from {_quoted(self._config.table)} limit 0", ())
            texts = ", ".join(
                name
                if about[1] in (FIELD_TYPE.DATETIME, FIELD_TYPE.TIMESTAMP)
                else f"cast({name} as char)"
                for name, about in zip(columns, cursor.description, strict=True)
            )
            only = f"({texts}) in %s"
        query = (
            f"select {key} from {_quoted(self._config.table)} where {only} group by {key}"
            " having count(*) > 1 limit 1"
        )
        parts = [self._key.parts(name) for name in keys or ()]
        asked = parts if self._key.is_composite else [each for (each,) in parts]
        cursor.execute(query, () if keys is None else (tuple(asked),))
        if (twice := cursor.fetchone()) is not None:
            raise duplicate_key(self._where, self._key.columns, twice)

    def _column_names(self, cursor: Any) -> list[str]:
        cursor.execute(f"select * from {_quoted(self._config.table)} limit 0", ())
        return [str(column[0]) for column in cursor.description]

    def _types(self, cursor: Any) -> dict[str, str]:
        """Column → its type as the server names it."""
        cursor.execute(
            "select column_name, data_type from information_schema.columns"
            " where table_schema = database() and table_name = %s",
            (self._config.table,),
        )
        return {str(name): str(kind).lower() for name, kind in cursor.fetchall()}

    def _end(self, cursor: Any) -> tuple[str, int]:
        cursor.execute("show master status")
        row = cursor.fetchone()
        return str(row[0]), int(row[1])

    def _server(self, cursor: Any) -> str:
        return _variable(cursor, "server_uuid") or _variable(cursor, "server_uid")

    def _log_lost(self, why: str) -> SourceError:
        return SourceError(
            f"the log of {self._where} was lost: {why}; changes since the stored position are"
            " gone.",
            code="source.log_lost",
            next_step="Set data.source.slot to a new name: the table is read anew (what was deleted"
            " meanwhile stays learnt). Keep the server's log for longer than we may be away.",
        )

    # Connections.

    def _connect(self) -> Any:
        host, port, user, password, database = self._address
        return pymysql.connect(
            host=host, port=port, user=user, password=password, database=database,
            charset="utf8mb4", connect_timeout=10, autocommit=True,
        )  # fmt: skip

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        with self._translated(), closing(self._connect()) as connection:
            yield connection.cursor()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The driver's errors as ours."""
        try:
            yield
        except pymysql.MySQLError as error:
            code, cause = (*error.args, "", "")[:2]
            said = f"{self._where}: {str(cause).splitlines()[0] if cause else error}."
            if code in LOG_GONE:
                raise self._log_lost(str(cause)) from error
            if code in (NO_TABLE, NO_DATABASE):
                raise SourceError(
                    said, code="source.no_table", next_step="Dropped or renamed? Bring it back."
                ) from error
            is_passing = isinstance(error, (pymysql.OperationalError, pymysql.InterfaceError))
            raise SourceError(
                said,
                code="source.unreachable" if is_passing else "source.unreadable",
                retryable=is_passing,
                next_step="Check data.source.url, the server and the user's rights (replication"
                " slave, replication client, select).",
            ) from error
        except UnicodeDecodeError as error:
            raise SourceError(f"{self._where}: {error}.", code="source.not_utf8") from error


def _opened(**settings: Any) -> Any:
    """The library says `db`, of which the driver warns."""
    return pymysql.connect(database=settings.pop("db", None), **settings)


def _address(url: str) -> tuple[str, int, str, str, str]:
    """(host, port, user, password, database). Raises: SourceError source.bad_url."""
    try:
        found = urlsplit(re.sub(r"^\w+(\+\w+)?://", "mysql://", url))
        port = found.port or 3306
    except ValueError:
        found, port = urlsplit(""), 0
    database = found.path.strip("/")
    if not found.hostname or not database:
        raise SourceError(
            "data.source.url is no address of a database.",
            code="source.bad_url",
            next_step="Write one like mysql://user@host/database.",
        )
    user, password = unquote(found.username or ""), unquote(found.password or "")
    return found.hostname, port, user, password, unquote(database)


def _variable(cursor: Any, name: str) -> str:
    cursor.execute("show global variables like %s", (name,))
    row = cursor.fetchone()
    return str(row[1]) if row else ""


def _ordered(name: str, kind: str) -> str:
    """A column's value as bytes to order by. What is no text is not converted: many would be one,
    and rows be passed by.
    """
    is_bytes = kind in ("binary", "varbinary", "bit") or kind.endswith("blob")
    text = _quoted(name) if is_bytes else f"convert({_quoted(name)} using utf8mb4)"
    return f"cast({text} as binary)"


def _quoted(name: str) -> str:
    """For a statement with arguments, be it none, `()`: without any, %% would stay."""
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"
