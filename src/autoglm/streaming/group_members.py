"""Who of a consumer group reads which partition, in the broker's own SQLite file.

A member has a lease. Joining, leaving, and a lease that ran out give the group a new generation,
and partitions are dealt out anew in the same transaction. Who was left out learns it by his next
heartbeat; that he may still be writing is no danger, since the table refuses offsets that do not
follow its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from autoglm.plugins.kinds import Assignment

SCHEMA = """
create table if not exists generation (grp text, topic text, number integer not null,
  primary key (grp, topic));
create table if not exists member (grp text, topic text, id text, lease real not null,
  lease_until real not null, first integer not null, beyond integer not null,
  primary key (grp, topic, id));
"""


def join(
    connection: sqlite3.Connection,
    group: str,
    topic: str,
    member: str,
    *,
    lease: float,
    num_partitions: int,
    now: float,
) -> Assignment:
    connection.execute(
        "insert into member values (?, ?, ?, ?, ?, 0, 0) on conflict (grp, topic, id)"
        " do update set lease = excluded.lease, lease_until = excluded.lease_until",
        (group, topic, member, lease, now + lease),
    )
    _deal(connection, group, topic, num_partitions, now)
    found = _assignment(connection, group, topic, member)
    assert found is not None, "it has just been written"
    return found


def heartbeat(
    connection: sqlite3.Connection,
    group: str,
    topic: str,
    member: str,
    *,
    num_partitions: int,
    now: float,
) -> Assignment | None:
    """None when the member is none any more."""
    expired = _expired(connection, group, topic, now)
    connection.execute(
        "update member set lease_until = ? + lease where grp = ? and topic = ? and id = ?",
        (now, group, topic, member),
    )
    if member in expired:
        # Its lease ran out: others may read its partitions already, or will from now on.
        leave(connection, group, topic, member, num_partitions=num_partitions, now=now)
    elif expired:
        _deal(connection, group, topic, num_partitions, now)
    return _assignment(connection, group, topic, member)


def leave(
    connection: sqlite3.Connection,
    group: str,
    topic: str,
    member: str,
    *,
    num_partitions: int,
    now: float,
) -> None:
    connection.execute(
        "delete from member where grp = ? and topic = ? and id = ?", (group, topic, member)
    )
    _deal(connection, group, topic, num_partitions, now)


def newest_generation(connection: sqlite3.Connection, group: str, topic: str) -> int:
    row = connection.execute(
        "select number from generation where grp = ? and topic = ?", (group, topic)
    ).fetchone()
    return int(row[0]) if row else 0


def _expired(connection: sqlite3.Connection, group: str, topic: str, now: float) -> Sequence[str]:
    # A lease that ends later than it could have been given: the clock was set back since.
    return [
        name
        for (name,) in connection.execute(
            "select id from member where grp = ? and topic = ?"
            " and (lease_until <= ? or lease_until > ? + lease)",
            (group, topic, now, now),
        )
    ]


def _deal(
    connection: sqlite3.Connection, group: str, topic: str, num_partitions: int, now: float
) -> None:
    """A new generation: ranges of partitions, by the members' names."""
    for name in _expired(connection, group, topic, now):
        connection.execute(
            "delete from member where grp = ? and topic = ? and id = ?", (group, topic, name)
        )
    members = [
        name
        for (name,) in connection.execute(
            "select id from member where grp = ? and topic = ? order by id", (group, topic)
        )
    ]
    connection.execute(
        "insert into generation values (?, ?, 1)"
        " on conflict (grp, topic) do update set number = number + 1",
        (group, topic),
    )
    for place, name in enumerate(members):
        first = place * num_partitions // len(members)
        beyond = (place + 1) * num_partitions // len(members)
        connection.execute(
            "update member set first = ?, beyond = ? where grp = ? and topic = ? and id = ?",
            (first, beyond, group, topic, name),
        )


def _assignment(
    connection: sqlite3.Connection, group: str, topic: str, member: str
) -> Assignment | None:
    row = connection.execute(
        "select first, beyond from member where grp = ? and topic = ? and id = ?",
        (group, topic, member),
    ).fetchone()
    if row is None:
        return None
    generation = newest_generation(connection, group, topic)
    return Assignment(generation=generation, partitions=tuple(range(*row)))
