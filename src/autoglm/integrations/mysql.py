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
from pymysql.cursors import SSCursor
from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.event import HeartbeatLogEvent, QueryEvent, XidEvent
from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent
from autoglm.errors import SourceError
from autoglm.streaming.collectors.database import duplicate_key, plain
from autoglm.streaming.collectors.events import Maker
from autoglm.streaming.collectors.log_position import LogPosition, Part
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.row_key import RowKey

HEARTBEAT_SECONDS, LINGER_SECONDS = 0.5, 0.05
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
            if known.lsn > _place(file, end):
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
                columns = self._column_names(cursor)
            after = known.after or ""
            is_first = not known.lsn
            start = place if is_first else known.lsn
            # Whoever began died: the rest is of a later place; the log is passed by until there.
            above = known.last or after
            parts = known.parts if is_first else (*known.parts, Part(above, "", place))
            known = replace(
                known, server=server, lsn=start, version=max(known.version, start), after=after,
                parts=parts,
            )  # fmt: skip
            yield from self._rows(connection, columns, known)

    def _consistent(self, cursor: Any) -> int:
        """Begin a snapshot; the place in the log up to which it holds everything."""
        cursor.execute("set session transaction isolation level repeatable read")
        cursor.execute("start transaction with consistent snapshot")
        cursor.execute("show status like 'binlog_snapshot_%'")  # MariaDB tells it without a lock
        found = {name.lower(): value for name, value in cursor.fetchall()}
        if found.get("binlog_snapshot_file"):
            number = int(found["binlog_snapshot_position"])
            return _place(found["binlog_snapshot_file"], number)
        cursor.execute("flush tables with read lock")
        try:
            cursor.execute("start transaction with consistent snapshot")
            return _place(*self._end(cursor))
        finally:
            cursor.execute("unlock tables")

    def _rows(
        self, connection: Any, columns: list[str], known: LogPosition
    ) -> Iterator[ChangeBatch]:
        keys = [
            f"cast(convert({_quoted(name)} using utf8mb4) as binary)" for name in self._key.columns
        ]
        key, is_nameless = ", ".join(keys), " or ".join(f"{each} is null" for each in keys)
        batch, num_keys = list[ChangeEvent](), len(keys)
        names = ", ".join(_quoted(name) for name in columns)
        passed = self._key.parts(known.after) if known.after else ()
        places = ", ".join("cast(%s as binary)" for _ in passed)
        rest = f"where ({key}) > ({places}) or {is_nameless}" if passed else ""
        with connection.cursor(SSCursor) as rows:
            query = (
                f"select {key}, {names} from {_quoted(self._config.table)} {rest}"
                f" order by ({is_nameless}), {key}"
            )
            rows.execute(query, passed or None)
            for found in rows:
                values = zip(columns, found[num_keys:], strict=True)
                row = {name: plain(value) for name, value in values}
                if not (name := self._key.name_of(row)):
                    batch.append(self._dead(row, known.version, datetime.now(UTC)))
                else:
                    known = replace(known, after=self._key.name(found[:num_keys]), last=name)
                    batch.append(self._make.upsert(name, row, known.version))
                if len(batch) == self._batch_rows:
                    yield self._make.batch(batch, known.write())
                    batch = []
        yield self._make.batch(batch, replace(known, after=None, last="").write())

    # The log.

    def _changes(
        self, known: LogPosition, base: str, cancel: threading.Event | None
    ) -> Generator[ChangeBatch, None, None]:
        reader = self._open_log(known, base, is_waiting=cancel is not None)
        log = _Log(known, self._make, self._config, self._dead)
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

    def _dead(self, row: Mapping[str, Any], version: int, at: datetime) -> ChangeEvent:
        return self._make.dead(
            "a row without a key", row, code="source.null_key", cause=f"no {self._key}",
            version=version, at=at,
        )  # fmt: skip

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
        columns = self._column_names(cursor)
        for name in (*self._key.columns, *self._columns):
            if name not in columns:
                raise SourceError(
                    f"{self._where} has no column {name!r}.",
                    code="source.no_column",
                    next_step=f"There are: {', '.join(columns)}.",
                )

    def _is_unique(self, cursor: Any) -> bool:
        """Whether an index holds that the key names a row."""
        cursor.execute(f"show index from {_quoted(self._config.table)}")
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
        key, texts = ", ".join(columns), ", ".join(f"cast({name} as char)" for name in columns)
        there = " and ".join(f"{name} is not null" for name in columns)
        only = there if keys is None else f"({texts}) in %s"
        query = (
            f"select {key} from {_quoted(self._config.table)} where {only} group by {key}"
            " having count(*) > 1 limit 1"
        )
        parts = [self._key.parts(name) for name in keys or ()]
        asked = parts if self._key.is_composite else [each for (each,) in parts]
        cursor.execute(query, None if keys is None else (tuple(asked),))
        if (twice := cursor.fetchone()) is not None:
            raise duplicate_key(self._where, self._key.columns, twice)

    def _column_names(self, cursor: Any) -> list[str]:
        cursor.execute(f"select * from {_quoted(self._config.table)} limit 0")
        return [str(column[0]) for column in cursor.description]

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


class _Log:
    """Events of the log → change events, with the place after each."""

    def __init__(self, known: LogPosition, make: Maker, config: SourceConfig, dead: Any) -> None:
        self.events: list[ChangeEvent] = []
        self._known, self._make, self._config, self._dead = known, make, config, dead
        self._key = RowKey.of(config.key)
        self._version, self._skip, self._count = known.version, known.count, 0
        self._since = 0.0

    def has_waited(self) -> bool:
        return time.monotonic() - self._since > LINGER_SECONDS

    def taken(self) -> str:
        """The position after the waiting events, which are forgotten."""
        self.events = []
        return replace(self._known, version=self._version, count=self._count).write()

    def take(self, event: Any, reader: Any, at: datetime) -> Iterator[None]:
        """Yields after each row. Raises: SourceError source.truncated, source.no_table."""
        if isinstance(event, XidEvent):
            self._commit(reader)
        elif isinstance(event, QueryEvent):
            text = (
                event.query
                if isinstance(event.query, str)
                else event.query.decode("utf-8", "replace")
            )
            if text.strip().upper() != "BEGIN":
                self._statement(text, at)
                self._commit(reader)
        elif isinstance(event, (WriteRowsEvent, UpdateRowsEvent, DeleteRowsEvent)):
            for row in event.rows:
                self._count += 1
                if self._count > self._skip:
                    self._row(event, row, at)
                    yield

    def _row(self, event: Any, row: Mapping[str, Any], at: datetime) -> None:
        before = row.get("before_values", row.get("values", {}))
        after = row.get("after_values", row.get("values", {}))
        if isinstance(event, DeleteRowsEvent):
            self._change(before, None, at)
            return
        if isinstance(event, UpdateRowsEvent):
            old = self._key.name_of(before)
            if old and old != self._key.name_of(after):
                self._change(before, None, at)
        self._change(after, {name: plain(value) for name, value in after.items()}, at)

    def _change(self, named: Mapping[str, Any], row: dict[str, Any] | None, at: datetime) -> None:
        self._version = max(self._version + 1, self._known.lsn)
        if not self.events:
            self._since = time.monotonic()
        key = self._key.name_of(named)
        if not key:
            shown = {name: plain(value) for name, value in named.items()}
            self.events.append(self._dead(shown, self._version, at))
            return
        if self._is_in_snapshot(key):
            return
        make = self._make
        self.events.append(
            make.delete(key, self._version, at)
            if row is None
            else make.upsert(key, row, self._version, at)
        )

    def _is_in_snapshot(self, key: str) -> bool:
        """Whether the part of the snapshot that read this key is of a later place."""
        part = self._known.part_of(key, self._key)
        return part is not None and self._known.lsn < part.until

    def _commit(self, reader: Any) -> None:
        lsn = _place(reader.log_file, reader.log_pos)
        parts = tuple(part for part in self._known.parts if lsn < part.until)
        self._known = replace(self._known, lsn=lsn, count=0, parts=parts)
        self._count = self._skip = 0

    def _statement(self, text: str, at: datetime) -> None:
        table = re.escape(self._config.table)
        name = rf"(?:[`\"]?\w+[`\"]?\s*\.\s*)?[`\"]?{table}[`\"]?(?![\w`\"])"
        if re.match(rf"\s*truncate\s+(?:table\s+)?{name}", text, re.IGNORECASE):
            if self._config.truncate == "stop":
                raise SourceError(
                    f"the table {self._config.table} was emptied (truncate) at {at.isoformat()}:"
                    " the log does not say which rows it had.",
                    code="source.truncated",
                    next_step="Set data.source.truncate: keep to go on with what was learnt; to"
                    " forget it start from an empty state folder.",
                )
        elif (
            re.search(rf"\brename\s+(?:table\s+)?{name}\s+to\b", text, re.IGNORECASE)
            or re.match(
                rf"\s*alter\s+table\s+{name}\s+rename\s+(?:to\s+|as\s+)?[`\w]", text, re.IGNORECASE
            )
            and not re.match(
                rf"\s*alter\s+table\s+{name}\s+rename\s+(column|index|key)\b", text, re.IGNORECASE
            )
        ):
            raise SourceError(
                f"the table {self._config.table} was renamed at {at.isoformat()}.",
                code="source.no_table",
                next_step="Set data.source.table to its new name: it is read anew.",
            )


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


def _place(file: str, byte: int) -> int:
    """File and byte as one number that grows."""
    return (int(file.rpartition(".")[2]) << 32) + byte


def _variable(cursor: Any, name: str) -> str:
    cursor.execute("show global variables like %s", (name,))
    row = cursor.fetchone()
    return str(row[1]) if row else ""


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"
