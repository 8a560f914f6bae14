"""PostgreSQL's `pgoutput` messages, protocol version 1, as records. Pure: bytes in, records out.

Source: PostgreSQL documentation, "Logical Replication Message Formats". Protocol 1 sends whole
transactions in the order of their commits.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

Row = dict[str, Any]
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL counts microseconds from here

_INT16, _INT32 = struct.Struct("!h"), struct.Struct("!i")
_BEGIN, _COMMIT = struct.Struct("!QqI"), struct.Struct("!BQQq")


class Unchanged:
    """In the place of a large value that an update left alone: the server does not send it."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED = Unchanged()


@dataclass(frozen=True, slots=True)
class Begin:
    """`commit_lsn` is where the transaction's commit begins, known before its changes come."""

    commit_lsn: int
    committed_at: datetime
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    commit_lsn: int
    end_lsn: int


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as it is from here on; sent before its first row and after each change of it."""

    number: int
    schema: str
    name: str
    identity: str  # d: primary key, i: an index, f: the whole row, n: nothing
    columns: tuple[str, ...]
    converters: tuple[Callable[[str], Any] | None, ...]


@dataclass(frozen=True, slots=True)
class Insert:
    relation: Relation
    row: Row


@dataclass(frozen=True, slots=True)
class Update:
    """`before` holds the identity's columns if they changed, the whole row with identity full."""

    relation: Relation
    before: Row | None
    row: Row


@dataclass(frozen=True, slots=True)
class Delete:
    relation: Relation
    before: Row


@dataclass(frozen=True, slots=True)
class Truncate:
    relations: tuple[Relation, ...]


Message = Begin | Commit | Relation | Insert | Update | Delete | Truncate


class Decoder:
    """Knows the tables that were described so far. Raises: ValueError for what it cannot read."""

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}

    def decode(self, data: bytes) -> Message | None:
        """None for messages without a change: types, origins, messages of plugins."""
        kind = data[:1]
        try:
            if kind == b"I":
                relation = self._relations[_INT32.unpack_from(data, 1)[0]]
                return Insert(relation, _row(data, 6, relation)[0])
            if kind == b"U":
                return self._update(data)
            if kind == b"D":
                relation = self._relations[_INT32.unpack_from(data, 1)[0]]
                return Delete(relation, _old(data, 6, relation, data[5:6])[0])
            return self._rare(kind, data)
        except (struct.error, IndexError, KeyError) as error:
            raise ValueError(
                f"a pgoutput message of kind {kind!r} ends too soon: {error}"
            ) from error

    def _rare(self, kind: bytes, data: bytes) -> Message | None:
        if kind == b"B":
            lsn, moment, xid = _BEGIN.unpack_from(data, 1)
            try:
                return Begin(lsn, EPOCH + timedelta(microseconds=moment), xid)
            except OverflowError as error:
                raise ValueError(f"a pgoutput message begins at no moment: {error}") from error
        if kind == b"C":
            _flags, lsn, end, _moment = _COMMIT.unpack_from(data, 1)
            return Commit(lsn, end)
        if kind == b"R":
            relation = _relation(data)
            self._relations[relation.number] = relation
            return relation
        if kind == b"T":
            count = _INT32.unpack_from(data, 1)[0]
            numbers = [_INT32.unpack_from(data, 6 + 4 * index)[0] for index in range(count)]
            return Truncate(tuple(self._relations[number] for number in numbers))
        if kind in (b"Y", b"O", b"M"):
            return None
        raise ValueError(f"unknown pgoutput message {kind!r}")

    def _update(self, data: bytes) -> Update:
        relation = self._relations[_INT32.unpack_from(data, 1)[0]]
        before, at, kind = None, 5, data[5:6]
        if kind in (b"K", b"O"):
            before, at = _old(data, 6, relation, kind)
        row, _end = _row(data, at + 1, relation)
        if before is not None:
            for name, value in row.items():
                if value is UNCHANGED and name in before:
                    row[name] = before[name]
        return Update(relation, before, row)


def _row(data: bytes, at: int, relation: Relation) -> tuple[Row, int]:
    row: Row = {}
    at += 2
    for name, convert in zip(relation.columns, relation.converters, strict=True):
        kind = data[at]
        at += 1
        if kind == 0x74:  # t: text
            start = at + 4
            at = start + _INT32.unpack_from(data, at)[0]
            if at > len(data):
                raise IndexError("a value is cut off")
            text = data[start:at].decode("utf-8", "surrogateescape")
            row[name] = text if convert is None else convert(text)
        elif kind == 0x6E:  # n: null
            row[name] = None
        elif kind == 0x75:  # u: unchanged
            row[name] = UNCHANGED
        else:
            raise IndexError(f"a value of kind {kind:#x}")
    return row, at


def _old(data: bytes, at: int, relation: Relation, kind: bytes) -> tuple[Row, int]:
    """The row as it was; of a key only what is not null says something."""
    row, end = _row(data, at, relation)
    return (row if kind == b"O" else {n: v for n, v in row.items() if v is not None}), end


def _relation(data: bytes) -> Relation:
    number = _INT32.unpack_from(data, 1)[0]
    schema, at = _string(data, 5)
    name, at = _string(data, at)
    identity, count, at = chr(data[at]), _INT16.unpack_from(data, at + 1)[0], at + 3
    names, converters = [], []
    for _index in range(count):
        column, end = _string(data, at + 1)
        names.append(column)
        converters.append(CONVERTERS.get(_INT32.unpack_from(data, end)[0]))
        at = end + 8
    return Relation(number, schema or "pg_catalog", name, identity, tuple(names), tuple(converters))


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode("utf-8", "surrogateescape"), end + 1


def _moment(kind: type[datetime] | type[date] | type[time]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        try:
            return kind.fromisoformat(text).isoformat()
        except ValueError:  # infinity, years before 1 or after 9999
            return text

    return convert


def _bytes(text: str) -> str:
    return bytes.fromhex(text[2:]).decode("utf-8", "surrogateescape")


def _json(text: str) -> str:
    return json.dumps(json.loads(text), ensure_ascii=False)


def _array(convert: Callable[[str], Any] | None) -> Callable[[str], str]:
    """`{1,NULL,"a b"}` → JSON, as a driver's list becomes it."""

    def read(text: str) -> str:
        try:
            return json.dumps(_elements(text, convert), ensure_ascii=False, default=str)
        except (ValueError, IndexError):
            return text

    return read


def _elements(text: str, convert: Callable[[str], Any] | None) -> list[Any]:
    start = text.index("{")  # bounds other than 1 stand before it
    stack: list[list[Any]] = []
    at = start
    while at < len(text):
        character = text[at]
        if character == "{":
            stack.append([])
            at += 1
        elif character == "}":
            done = stack.pop()
            if not stack:
                return done
            stack[-1].append(done)
            at += 1
        elif character == ",":
            at += 1
        elif character == '"':
            piece, at = _quoted(text, at + 1)
            stack[-1].append(convert(piece) if convert else piece)
        else:
            end = min(i for i in (text.find(",", at), text.find("}", at)) if i >= 0)
            piece, at = text[at:end], end
            is_null = piece.upper() == "NULL"
            stack[-1].append(None if is_null else convert(piece) if convert else piece)
    raise ValueError("an array that does not end")


def _quoted(text: str, at: int) -> tuple[str, int]:
    piece: list[str] = []
    while text[at] != '"':
        at += text[at] == "\\"
        piece.append(text[at])
        at += 1
    return "".join(piece), at + 1


def converter(type_oid: int) -> Callable[[str], Any] | None:
    """Text of a value of this type → what a polled row would hold; None: the text itself."""
    return CONVERTERS.get(type_oid)


def _is_true(text: str) -> bool:
    return text in ("t", "true")  # in the log, and of a cast


_SCALARS: Mapping[int, Callable[[str], Any]] = {
    16: _is_true, 17: _bytes, 20: int, 21: int, 23: int, 26: int, 700: float, 701: float,
    114: _json, 3802: _json, 1082: _moment(date), 1083: _moment(time), 1266: _moment(time),
    1114: _moment(datetime), 1184: _moment(datetime),
}  # fmt: skip
# Type of an array → type of its elements: text and varchar, numbers, booleans, moments, uuid.
_ARRAYS: Mapping[int, int] = {
    1009: 25, 1015: 1043, 1014: 1042, 1005: 21, 1007: 23, 1016: 20, 1000: 16, 1021: 700, 1022: 701,
    1231: 1700, 1115: 1114, 1185: 1184, 1182: 1082, 2951: 2950,
}  # fmt: skip
CONVERTERS: Mapping[int, Callable[[str], Any]] = {
    **_SCALARS, **{array: _array(_SCALARS.get(inner)) for array, inner in _ARRAYS.items()},
}  # fmt: skip


def names_of(relations: Sequence[Relation]) -> str:
    return ", ".join(f"{relation.schema}.{relation.name}" for relation in relations)
