"""A logical replication slot's stream over libpq: the server learns what it is told, no more.

Drivers with a replication cursor answer the server by themselves with the end of the log that it
last spoke of, before anybody has stored that: a reader that died there came back behind its slot.
Messages: https://www.postgresql.org/docs/15/protocol-replication.html
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Mapping

import psycopg
from psycopg import sql
from psycopg.pq import ExecStatus

_DATA, _KEEPALIVE, _STATUS = (
    struct.Struct(">cQQq"),
    struct.Struct(">cQq?"),
    struct.Struct(">cQQQq?"),
)
_EPOCH = 946_684_800  # 2000-01-01 in Unix seconds: the protocol counts microseconds from there


class ReplicationStream:
    """Begins to stream `slot` from the position `start`, on a connection with `replication`.

    Raises: psycopg.Error with the server's own code.
    """

    def __init__(
        self,
        connection: psycopg.Connection[tuple[object, ...]],
        slot: str,
        start: int,
        options: Mapping[str, str],
    ) -> None:
        self._pgconn, self._told = connection.pgconn, start
        self.sent = 0  # up to here the server has sent, of what is the slot's
        said = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(name), sql.Literal(value))
            for name, value in options.items()
        )
        command = sql.SQL("START_REPLICATION SLOT {} LOGICAL {} ({})").format(
            sql.Identifier(slot), sql.SQL(f"{start >> 32:X}/{start & 0xFFFFFFFF:X}"), said
        )  # fmt: skip
        begun = self._pgconn.exec_(command.as_bytes(connection))
        if begun.status != ExecStatus.COPY_BOTH:
            state = (begun.error_field(psycopg.pq.DiagnosticField.SQLSTATE) or b"").decode()
            raise _error(state, begun.get_error_message())

    def read(self) -> bytes | None:
        """The next message's payload; None when nothing is here now. Raises: psycopg.Error."""
        is_asked = False
        while True:
            size, data = self._pgconn.get_copy_data(1)
            if size == -1:
                ended = self._pgconn.get_result()
                cause = ended.get_error_message() if ended is not None else "the stream ended"
                raise psycopg.OperationalError(cause)
            if size == 0:
                if is_asked:
                    return None
                self._pgconn.consume_input()
                is_asked = True
                continue
            kind = bytes(data[:1])
            if kind == b"w":
                self.sent = _DATA.unpack_from(data)[2]
                return bytes(data[_DATA.size :])
            if kind != b"k":
                raise psycopg.OperationalError(f"a replication message {kind!r} is not known")
            _kind, self.sent, _at, is_answer_wanted = _KEEPALIVE.unpack_from(data)
            if is_answer_wanted:
                self.tell(self._told)

    def wait(self, seconds: float) -> None:
        """Until something comes, at most so long."""
        readable = select.poll()  # unlike select it takes a socket of any number
        readable.register(self._pgconn.socket, select.POLLIN)
        readable.poll(int(1000 * seconds))

    def tell(self, stored: int, *, asks: bool = False) -> None:
        """What lies before `stored` is needed no more; with `asks` the server says where it is."""
        self._told = max(self._told, stored)
        now = int((time.time() - _EPOCH) * 1_000_000)
        self._pgconn.put_copy_data(_STATUS.pack(b"r", self._told, self._told, 0, now, asks))
        self._pgconn.flush()  # what the socket does not take now goes with the next read


def _error(state: str, message: str) -> psycopg.Error:
    try:
        kind = psycopg.errors.lookup(state)
    except KeyError:
        kind = psycopg.OperationalError
    return kind(message)
