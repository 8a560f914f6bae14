"""Append-only events per stream, numbered from 1 without gaps. State is a fold over them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from autoglm.contracts.record import to_json
from autoglm.errors import ConflictError, FencedError

_INSERT = text("insert into event values (:stream, :seq, :kind, :data, :at)")
_FENCE_AND_LAST = text(
    "select coalesce((select value from counter where name = :name), 0),"
    " coalesce((select max(seq) from event where stream = :stream), 0)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedEvent:
    stream: str
    seq: int
    kind: str
    data: Mapping[str, Any]
    at: datetime


class EventLog:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def append(
        self, stream: str, kind: str, data: Mapping[str, Any], *, expect: int | None = None
    ) -> int:
        """Durable when it returns the event's number.

        Raises: ConflictError when `expect` is given and is not the stream's last number.
        """
        with self._engine.begin() as connection:
            return self.append_in(connection, stream, kind, data, expect=expect)

    def append_in(
        self,
        connection: Connection,
        stream: str,
        kind: str,
        data: Mapping[str, Any],
        *,
        expect: int | None = None,
    ) -> int:
        """`append` inside the caller's transaction."""
        last = connection.execute(
            text("select coalesce(max(seq), 0) from event where stream = :stream"),
            {"stream": stream},
        ).scalar_one()
        if expect is not None and last != expect:
            raise ConflictError(f"stream {stream} is at {last}, not at {expect}.")
        connection.execute(
            _INSERT,
            {
                "stream": stream,
                "seq": last + 1,
                "kind": kind,
                "data": json.dumps(to_json(data), ensure_ascii=False),
                "at": datetime.now(UTC).isoformat(),
            },
        )
        return int(last) + 1

    def take(self, stream: str) -> int:
        """Become the one writer of `stream`, with this fence; who took it before is out."""
        with self._engine.begin() as connection:
            fence = connection.execute(
                text(
                    "insert into counter values (:name, 1)"
                    " on conflict (name) do update set value = value + 1 returning value"
                ),
                {"name": f"fence/{stream}"},
            ).scalar_one()
        return int(fence)

    def append_many(self, stream: str, kind: str, entries: Sequence[str], *, fence: int) -> None:
        """All entries (JSON documents) in one transaction, or none.

        Raises: FencedError when somebody took the stream after `fence` was given.
        """
        at = datetime.now(UTC).isoformat()
        with self._engine.begin() as connection:
            newest, last = connection.execute(
                _FENCE_AND_LAST,
                {"name": f"fence/{stream}", "stream": stream},
            ).one()
            if newest != fence:
                raise FencedError(f"{stream} was taken over by another process.")
            connection.execute(
                _INSERT,
                [
                    {"stream": stream, "seq": seq, "kind": kind, "data": data, "at": at}
                    for seq, data in enumerate(entries, start=last + 1)
                ],
            )

    def streams(self, prefix: str) -> list[str]:
        """Names of the streams that begin with `prefix`, in the order of their first event."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                text(
                    "select stream from event where seq = 1 and stream like :like"
                    " order by at, stream"
                ),
                {"like": f"{prefix}%"},
            ).scalars()
            return list(rows)

    def read(self, stream: str, after: int = 0) -> Iterator[LoggedEvent]:
        with self._engine.begin() as connection:
            rows = connection.execute(
                text(
                    "select seq, kind, data, at from event where stream = :stream and seq > :after"
                    " order by seq"
                ),
                {"stream": stream, "after": after},
            ).all()
        for seq, kind, data, at in rows:
            yield LoggedEvent(
                stream=stream,
                seq=seq,
                kind=kind,
                data=json.loads(data),
                at=datetime.fromisoformat(at),
            )
