"""The binary log of MariaDB or MySQL, event by event, as changes of one table's rows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any
from uuid import UUID

from pymysqlreplication.constants import FIELD_TYPE
from pymysqlreplication.event import QueryEvent, XidEvent
from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

from autoglm.contracts.change_event import ChangeEvent
from autoglm.errors import SourceError
from autoglm.streaming.collectors.database import plain
from autoglm.streaming.collectors.events import Maker
from autoglm.streaming.collectors.log_position import LogPosition
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.row_key import RowKey

LINGER_SECONDS = 0.05
VALUES = {"values", "before_values", "after_values"}
# Types of MariaDB that the log has as bytes of this length, and a select as text.
TEXT_OF_BYTES: Mapping[str, tuple[int, Callable[[bytes], Any]]] = {
    "uuid": (16, lambda value: str(UUID(bytes=value))),
    "inet6": (16, partial(inet_ntop, AF_INET6)),
    "inet4": (4, partial(inet_ntop, AF_INET)),
}
# What the library calls a column where the log does not.
_NAMELESS = re.compile(r"UNKNOWN_COL\d+")


class LogEvents:
    """Events of the log → change events, with the place after each. Pure but for `look_up(column,
    row)`, which reads a value by the row's key: a tuple of it, None if the row is gone. It is asked
    for those of `columns` that the table had under another name, or not, when the row was written.
    `types` are the columns' as the server names them.
    """

    def __init__(
        self,
        known: LogPosition,
        make: Maker,
        config: SourceConfig,
        *,
        types: Mapping[str, str],
        columns: Sequence[str],
        look_up: Callable[[str, Mapping[str, Any]], tuple[Any] | None],
    ) -> None:
        self.events: list[ChangeEvent] = []
        self._known, self._make, self._config = known, make, config
        self._types, self._columns, self._look_up = types, columns, look_up
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
            for row in _as_selected(event, self._types):
                self._count += 1
                if self._count > self._skip:
                    self._row(event, row, at)
                    yield

    def _row(self, event: Any, row: Mapping[str, Any], at: datetime) -> None:
        before = row.get("before_values", row.get("values", {}))
        after = row.get("after_values", row.get("values", {}))
        self._refuse_unnamed(before, at)
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
            self.events.append(nameless(self._make, self._key, shown, self._version, at))
        elif not self._is_in_snapshot(key):
            self.events.append(
                self._make.delete(key, self._version, at)
                if row is None
                else self._completed(key, row, at)
            )

    def _completed(self, key: str, row: dict[str, Any], at: datetime) -> ChangeEvent:
        """What the table did not have under its name is as it is now; a dead letter if the row is
        gone. Raises: SourceError source.no_column.
        """
        for name in self._columns:
            if name in row:
                continue
            found = self._look_up(name, row)
            if found is None:
                return self._make.dead(
                    f"a change of {key}", row, code="source.unchanged_lost",
                    cause=f"the log has no {name}, and the row is gone", version=self._version,
                    at=at,
                )  # fmt: skip
            row[name] = found[0]
        return self._make.upsert(key, row, self._version, at)

    def _refuse_unnamed(self, row: Mapping[str, Any], at: datetime) -> None:
        """Whose row it is, nobody can tell, and the log will never say it in another way."""
        missing = next((name for name in self._key.columns if name not in row), None)
        if missing is None:
            return
        has_names = not all(_NAMELESS.fullmatch(name) for name in row)
        raise SourceError(
            f"table {self._config.table} had no column {missing!r} when a row was written at"
            f" {at.isoformat()}; it had {', '.join(row)}."
            if has_names
            else f"the log has rows of {self._config.table} without the names of their columns,"
            f" written at {at.isoformat()}: binlog_row_metadata was not FULL then.",
            code="source.no_column" if has_names else "source.log_settings",
            next_step="Set data.source.slot to a new name: the table is read anew (what was deleted"
            " meanwhile stays learnt).",
        )

    def _is_in_snapshot(self, key: str) -> bool:
        """Whether the part of the snapshot that read this key is of a later place."""
        part = self._known.part_of(key, self._key)
        return part is not None and self._known.lsn < part.until

    def _commit(self, reader: Any) -> None:
        lsn = place_of(reader.log_file, reader.log_pos)
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


def _as_selected(event: Any, types: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """Its rows, with values as a snapshot reads them: else one row would have two names."""
    found = ((c.name, _reader(c, types.get(c.name, ""))) for c in event.columns)
    readers = {name: read for name, read in found if read is not None}
    for row in event.rows:
        for values in (row[part] for part in VALUES & row.keys() if readers):
            for name in readers.keys() & values.keys():
                if values[name] is not None:
                    values[name] = readers[name](values[name])
        yield row


def _reader(column: Any, kind: str) -> Callable[[Any], Any] | None:
    """What makes of a value of the log what a select gives; None where they are the same."""
    if column.type == FIELD_TYPE.BIT:
        return lambda bits: int(bits, 2).to_bytes(column.bytes, "big")
    if column.type == FIELD_TYPE.SET and column.set_values:
        return lambda chosen: ",".join(name for name in column.set_values if name in chosen)
    if column.type == FIELD_TYPE.STRING and column.character_set_name == "binary":
        length, text = TEXT_OF_BYTES.get(kind, (column.max_length, bytes))
        if length == column.max_length:
            # The log leaves zeros at the end out; the library reads no bytes at all as a text.
            return lambda value: text((value or b"").ljust(length, b"\0"))
    return None


def nameless(
    make: Maker,
    key: RowKey,
    row: Mapping[str, Any],
    version: int,
    at: datetime | None = None,
    *,
    where: str = "a row without a key",
) -> ChangeEvent:
    """The dead letter of a row without a key."""
    return make.dead(where, row, code="source.null_key", cause=f"no {key}", version=version, at=at)


def place_of(file: str, byte: int) -> int:
    """File and byte as one number that grows."""
    return (int(file.rpartition(".")[2]) << 32) + byte
