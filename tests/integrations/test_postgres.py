"""PostgreSQL as it is, started here: snapshot and log without a gap, an overlap, or silence."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from autoglm.contracts.change_event import ChangeEvent
from autoglm.errors import SourceError
from autoglm.integrations.postgres import PostgresSource
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.collector import collect
from autoglm.streaming.collectors.sql_poll import SqlPollSource
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.version_floor import RaisedPosition
from servers import Postgres, until


def source_of(
    server: Postgres, table: str, *, batch_rows: int = 100, **said: Any
) -> PostgresSource:
    said = {"key": "id", **said}
    config = SourceConfig(kind="postgres", url=server.url, table=table, **said)
    return PostgresSource(config, project="p", base=Path(), batch_rows=batch_rows)


def make_table(server: Postgres, name: str, columns: str = "text text", rows: int = 0) -> Any:
    connection = server.connect()
    connection.execute(f"create table {name} (id bigint primary key, {columns})")
    connection.execute(source_of(server, name).setup_sql)
    connection.execute(
        f"insert into {name} select n, 'row ' || n from generate_series(1, {rows}) n"
    ) if rows else None
    return connection


@pytest.fixture
def table(postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    name = request.node.name.removeprefix("test_")[:40].rstrip("_")
    connection = make_table(postgres, name, rows=10)
    yield name, connection
    connection.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active"
    )
    connection.close()


class Reader:
    """Reads and stores as the collector does, in memory."""

    def __init__(self, server: Postgres, table: str, **said: Any) -> None:
        self.open = lambda: source_of(server, table, **said)
        self.position = ""
        self.events: list[ChangeEvent] = []

    def read(self, *, stop_after: int | None = None) -> list[ChangeEvent]:
        """A new source each time, as after a restart; dies after `stop_after` batches."""
        source, new = self.open(), []
        batches = source.read(self.position)
        for number, batch in enumerate(batches, start=1):
            new += batch.events
            self.position = batch.position
            source.acknowledge(batch.position)
            if number == stop_after:
                break
        batches.close()  # type: ignore[attr-defined]
        self.events += new
        return new


@contextmanager
def listened(
    server: Postgres, name: str, columns: str, *inserts: str, **said: Any
) -> Iterator[tuple[Any, Reader]]:
    """A table of these columns and rows with what `setup` prints; its slot goes with it."""
    reader = Reader(server, name, **said)
    with server.connect() as connection:
        connection.execute(f"create table {name} ({columns})")
        connection.execute(reader.open().setup_sql)
        for values in inserts:
            connection.execute(f"insert into {name} {values}")
        yield connection, reader
    reader.open().drop()


def shown(events: list[ChangeEvent]) -> list[tuple[str, str, Any]]:
    return [(event.op, event.key, event.row.get("text")) for event in events]


def latest(events: list[ChangeEvent]) -> dict[str, Any]:
    """Key → text, by version as the table has it."""
    found: dict[str, ChangeEvent] = {}
    for event in events:
        assert event.key not in found or found[event.key].version < event.version
        found[event.key] = event
    return {key: event.row["text"] for key, event in found.items() if event.op == "upsert"}


def test_snapshot_then_every_change_in_commit_order(postgres: Postgres, table: Any) -> None:
    name, connection = table
    reader = Reader(postgres, name)
    assert len(reader.read()) == 10
    with postgres.connect() as early:
        early.execute("begin")
        early.execute(f"insert into {name} values (11, 'begun first, committed last')")
        connection.execute(f"insert into {name} values (12, 'x')")
        connection.execute(f"update {name} set text = 'new' where id = 3")
        connection.execute(f"update {name} set id = 30 where id = 4")
        connection.execute(f"delete from {name} where id = 5")
        early.execute("commit")
    assert shown(reader.read()) == [
        ("upsert", "12", "x"), ("upsert", "3", "new"), ("delete", "4", None),
        ("upsert", "30", "row 4"), ("delete", "5", None),
        ("upsert", "11", "begun first, committed last"),
    ]  # fmt: skip
    assert reader.read() == []
    versions = [event.version for event in reader.events[10:]]
    assert versions == sorted(set(versions))


def test_stopped_in_the_snapshot_and_changed_meanwhile(postgres: Postgres, table: Any) -> None:
    name, connection = table
    reader = Reader(postgres, name, batch_rows=3)
    reader.read(stop_after=1)  # keys 1, 10, 2
    connection.execute(f"update {name} set text = 'below' where id = 1")
    connection.execute(f"update {name} set text = 'above' where id = 9")
    connection.execute(f"delete from {name} where id = 10")
    connection.execute(f"delete from {name} where id = 8")
    reader.read(stop_after=1)  # keys 3, 4, 5 of a second snapshot
    connection.execute(f"update {name} set text = 'again' where id = 4")
    connection.execute(f"update {name} set text = 'third' where id = 7")
    reader.read()
    connection.execute(f"insert into {name} values (99, 'last')")
    reader.read()
    expected = dict(connection.execute(f"select id::text, text from {name}").fetchall())
    assert latest(reader.events) == expected
    counted = [key for op, key, _text in shown(reader.events) if op == "upsert"]
    assert sorted(counted) == sorted(["1", "10", "2", "3", "4", "5", "6", "7", "9", "1", "4", "99"])


def test_stopped_within_a_transaction(postgres: Postgres, table: Any) -> None:
    name, connection = table
    reader = Reader(postgres, name, batch_rows=4)
    reader.read()
    connection.execute(f"insert into {name} select n, 'bulk' from generate_series(100, 122) n")
    connection.execute(f"insert into {name} values (500, 'after')")
    for _attempt in range(50):  # a batch may move the position only
        reader.read(stop_after=1)
        if reader.events[-1].key == "500":
            break
    keys = [event.key for event in reader.events[10:]]
    assert keys == [str(n) for n in range(100, 123)] + ["500"]


def test_what_nobody_acknowledged_is_sent_again(postgres: Postgres, table: Any) -> None:
    name, connection = table
    reader = Reader(postgres, name)
    reader.read()
    connection.execute(f"insert into {name} values (11, 'x')")
    first = [e for batch in source_of(postgres, name).read(reader.position) for e in batch.events]
    again = reader.read()
    assert shown(first) == shown(again) == [("upsert", "11", "x")]


FOREIGN = (  # what the log holds beside changes of the table
    "select pg_logical_emit_message(false, 'nobody', repeat('x', 100)) from generate_series(1, {})"
)


def test_the_slot_stays_behind_what_is_stored(postgres: Postgres, table: Any) -> None:
    """The server says how far it is before it sends a change: that is stored by nobody."""
    name, connection = table
    reader = Reader(postgres, name)
    reader.read()
    for number in (11, 12, 13):
        connection.execute(FOREIGN.format(50_000))
        connection.execute(f"insert into {name} values ({number}, 'x')")
        batches = source_of(postgres, name).read(reader.position)
        unstored = [event.key for batch in batches for event in batch.events]
        assert unstored == [str(n) for n in range(11, number + 1)]
    assert [event.key for event in reader.read()] == ["11", "12", "13"]


def test_a_server_that_asks_is_told_what_is_stored(postgres: Postgres, table: Any) -> None:
    name, connection = table
    connection.execute("alter system set wal_sender_timeout = '1s'")
    connection.execute("select pg_reload_conf()")
    try:
        reader = Reader(postgres, name)
        reader.read()
        connection.execute(FOREIGN.format(10))
        before = source_of(postgres, name).status()["lag_bytes"]
        source, cancel = source_of(postgres, name), threading.Event()
        batches = source.follow(reader.position, cancel=cancel)
        assert next(batches).events == ()  # nothing of ours up to here; nobody stores it
        connection.execute(f"insert into {name} values (11, 'x')")
        time.sleep(0.7)  # the server asks half of its limit after it last heard something
        with suppress(SourceError):  # a slow machine: the server has given up
            next(batches)
        batches.close()  # type: ignore[attr-defined]
    finally:
        connection.execute("alter system reset wal_sender_timeout")
        connection.execute("select pg_reload_conf()")
    assert int(str(source_of(postgres, name).status()["lag_bytes"])) > int(str(before))
    assert shown(reader.read()) == [("upsert", "11", "x")]


def test_following_ends_when_cancelled_and_moves_the_slot(
    postgres: Postgres, table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoglm.integrations.postgres.LOOK_SECONDS", 0.1)
    name, connection = table
    source, cancel = source_of(postgres, name), threading.Event()
    broker = SqliteBroker(tmp_path / "b.db", partitions=2)

    def stored() -> int:
        return sum(broker.end_offset("t", number) for number in range(2))

    thread = threading.Thread(
        target=collect,
        args=(source, broker),
        kwargs={"topic": "t", "cancel": cancel, "follow": True},
    )
    thread.start()
    until(lambda: stored() == 10)
    connection.execute(f"insert into {name} values (11, 'x')")
    until(lambda: stored() == 11)
    before = connection.execute("select pg_current_wal_lsn()").fetchone()[0]
    moved = (
        "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where slot_name = %s"
    )
    # Other tables' changes move it too: else an idle table would hold the server's log back.
    until(lambda: connection.execute(moved, (before, source.status()["slot"])).fetchone()[0])
    known = RaisedPosition.read(broker.position("t", source.name))
    with pytest.raises(SourceError) as caught:
        list(source_of(postgres, name).read(known.position))
    assert caught.value.code == "source.slot_in_use"
    cancel.set()
    thread.join(60)
    assert not thread.is_alive()
    broker.close()


def test_other_tables_of_the_publication_are_passed_by(postgres: Postgres, table: Any) -> None:
    name, connection = table
    reader = Reader(postgres, name)
    reader.read()
    connection.execute("create table other_one (id int primary key)")
    connection.execute(f"alter publication autoglm_p_{name} add table other_one")
    connection.execute(f"insert into {name} values (11, 'x')")
    connection.execute("insert into other_one values (1)")
    connection.execute("truncate other_one")
    connection.execute(f"insert into {name} values (12, 'y')")
    assert [event.key for event in reader.read()] == ["11", "12"]
    connection.execute("drop table other_one")


TYPES = {
    "boolean": "true", "smallint": "7", "bigint": "9007199254740993", "real": "1.5",
    "double precision": "'NaN'", "numeric": "1.10", "varchar(9)": "'é\\x'", "bytea": "'\\x41ff'",
    "jsonb": """'{"b": [1, "ü"]}'""", "timestamptz": "'2026-01-02 03:04:05.5+01'",
    "timestamp": "'2026-01-02 03:04:05'", "date": "'2026-01-02'", "time": "'03:04'",
    "uuid": "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "char(3)": "'b'", "inet": "'10.0.0.1'", "int[]": "'{1,NULL,3}'",
    "text[]": """'{"a b","c\\"d",NULL,"NULL"}'""", "int[][]": "'{{1,2},{3,4}}'",
}  # fmt: skip


def test_values_are_the_same_polled_in_the_snapshot_and_in_the_log(postgres: Postgres) -> None:
    columns = ", ".join(f"c{index} {kind}" for index, kind in enumerate(TYPES))
    with make_table(postgres, "of_all_types", columns) as connection:
        insert = f"insert into of_all_types values (%s, {', '.join(TYPES.values())})"
        connection.execute(insert.replace("%s", "1"))
        reader = Reader(postgres, "of_all_types")
        snapshot = reader.read()[0].row
        connection.execute(insert.replace("%s", "2"))
        connection.execute(f"insert into of_all_types values (3{', null' * len(TYPES)})")
        logged, nulls = (event.row for event in reader.read())
        config = SourceConfig(
            url=postgres.url.replace("postgresql:", "postgresql+psycopg:") + "?options=-c%20timezone%3DUTC",
            table="of_all_types", key="id",
        )  # fmt: skip
        polled = [e for b in SqlPollSource(config, project="p", base=Path(), batch_rows=9).read("") for e in b.events]  # fmt: skip
    assert {**snapshot, "id": 2} == pytest.approx(logged, nan_ok=True)
    assert polled[0].row == pytest.approx(snapshot, nan_ok=True)
    assert set(nulls.values()) == {3, None}


def test_a_large_value_left_alone_comes_along_with_either_identity(postgres: Postgres) -> None:
    with make_table(postgres, "toasted", "text text, label text") as connection:
        connection.execute("alter table toasted alter column text set storage external")
        for number in (1, 2, 3):
            connection.execute(
                "insert into toasted values (%s, repeat(%s, 20000), 'a')", (number, str(number))
            )
        reader = Reader(postgres, "toasted")
        reader.read()
        connection.execute("update toasted set label = 'b' where id = 1")
        connection.execute("update toasted set label = 'b' where id = 3")
        connection.execute("delete from toasted where id = 3")
        connection.execute("alter table toasted replica identity full")
        connection.execute("update toasted set label = 'c' where id = 2")
        seen = reader.read()
    assert [(event.op, event.key) for event in seen[:1]] == [("upsert", "1")]
    assert seen[0].row["text"] == "1" * 20_000
    assert (seen[1].op, seen[1].row["code"]) == ("dead", "source.unchanged_lost")
    assert (seen[2].op, seen[2].key) == ("delete", "3")
    assert seen[3].row["text"] == "2" * 20_000


def test_a_changed_schema_goes_on_with_the_new_columns(postgres: Postgres, table: Any) -> None:
    name, connection = table
    reader = Reader(postgres, name)
    reader.read()
    connection.execute(f"alter table {name} add column label text")
    connection.execute(f"insert into {name} values (11, 'x', 'a')")
    connection.execute(f"alter table {name} drop column text")
    connection.execute(f"insert into {name} values (12, 'b')")
    rows = [dict(event.row) for event in reader.read()]
    assert rows == [{"id": 11, "text": "x", "label": "a"}, {"id": 12, "label": "b"}]


def test_a_truncate_stops_by_name_or_is_passed_by_when_told(postgres: Postgres, table: Any) -> None:
    name, connection = table
    reader = Reader(postgres, name)
    reader.read()
    connection.execute(f"truncate {name}")
    connection.execute(f"insert into {name} values (1, 'new')")
    for _attempt in range(2):
        with pytest.raises(SourceError) as caught:
            reader.read()
        assert caught.value.code == "source.truncated"
    keeping = Reader(postgres, name, truncate="keep")
    keeping.position = reader.position
    assert shown(keeping.read()) == [("upsert", "1", "new")]


def test_a_slot_dropped_behind_our_back_is_no_silent_loss(postgres: Postgres, table: Any) -> None:
    name, connection = table
    reader = Reader(postgres, name)
    reader.read()
    assert "dropped" in reader.open().drop()
    connection.execute(f"insert into {name} values (11, 'x')")
    for _attempt in range(2):
        with pytest.raises(SourceError, match="slot") as caught:
            reader.read()
        assert caught.value.code == "source.slot_lost"


def test_a_slot_that_another_reader_moved_is_no_silent_loss(postgres: Postgres, table: Any) -> None:
    name, connection = table
    mine, other = Reader(postgres, name), Reader(postgres, name)
    mine.read()
    other.position = mine.position
    connection.execute(f"insert into {name} values (11, 'x')")
    assert len(other.read()) == 1
    for _attempt in range(2):
        with pytest.raises(SourceError, match="ahead") as caught:
            mine.read()
        assert caught.value.code == "source.slot_lost"


def test_another_server_under_the_same_address_is_noticed(postgres: Postgres, table: Any) -> None:
    name, _connection = table
    reader = Reader(postgres, name)
    reader.read()
    reader.position = reader.position.replace('"server": "', '"server": "9')
    with pytest.raises(SourceError) as caught:
        reader.read()
    assert caught.value.code == "source.other_server"


def test_a_table_renamed_or_dropped_stops_by_name(postgres: Postgres, table: Any) -> None:
    name, connection = table
    reader = Reader(postgres, name)
    reader.read()
    connection.execute(f"insert into {name} values (11, 'x')")
    connection.execute(f"alter table {name} rename to renamed_now")
    with pytest.raises(SourceError) as caught:
        reader.read()
    assert caught.value.code == "source.no_table"
    slot = str(reader.open().name).removeprefix("postgres/")
    moved = Reader(postgres, "renamed_now", slot=slot)
    moved.position = reader.position
    assert shown(moved.read()) == [("upsert", "11", "x")]
    connection.execute("drop table renamed_now")
    with pytest.raises(SourceError, match="dropped or renamed"):
        moved.read()


@pytest.mark.parametrize(
    ("make", "said", "code"),
    [
        ("create table {t} (id int primary key)", {}, "source.no_publication"),
        ("create table {t} (id int); create publication autoglm_p_{t} for table {t}", {}, "source.no_identity"),
        ("create table {t} (no int primary key); create publication autoglm_p_{t} for table {t}", {}, "source.no_column"),
        ("select 1", {}, "source.no_table"),
        ("select 1", {"url": "postgresql://test@127.0.0.1:1/x"}, "source.unreachable"),
        ("select 1", {"url": "postgresql://["}, "source.unreachable"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(
    make: str, said: dict[str, str], code: str, postgres: Postgres, request: Any
) -> None:
    name = f"missing_{abs(hash((make, code))) % 10**8}"
    with postgres.connect() as connection:
        for statement in make.format(t=name).split(";"):
            connection.execute(statement)
    config = SourceConfig(
        **{"kind": "postgres", "url": postgres.url, "table": name, "key": "id", **said}
    )
    with pytest.raises(SourceError) as caught:
        list(PostgresSource(config, project="p", base=Path(), batch_rows=10).read(""))
    assert caught.value.code == code


def test_a_row_without_a_key_and_a_huge_value_are_events_not_stops(postgres: Postgres) -> None:
    there = "values (null, 'a'), ('k', 'b')"
    with listened(postgres, "loose", "id text, text text", there) as (connection, reader):
        connection.execute("alter table loose replica identity full")
        assert sorted(event.op for event in reader.read()) == ["dead", "upsert"]
        connection.execute("insert into loose values (null, 'c')")
        connection.execute("insert into loose values ('big', repeat('x', 20000000))")
        dead, big = reader.read()
    assert (dead.op, dead.row["code"]) == ("dead", "source.null_key")
    assert len(big.row["text"]) == 20_000_000


def test_a_key_that_two_rows_have_stops_the_snapshot_and_the_log(postgres: Postgres) -> None:
    columns, twins = "id int, part int, primary key (id, part)", "values (1, 1), (1, 2)"
    with listened(postgres, "halves", columns, twins) as (connection, reader):
        with pytest.raises(SourceError, match="two rows with id = 1") as caught:
            reader.read()
        assert (caught.value.code, reader.events) == ("source.duplicate_key", [])
        connection.execute("delete from halves where part = 2")
        assert [event.key for event in reader.read()] == ["1"]
        connection.execute("insert into halves values (2, 1), (1, 3)")
        for _attempt in range(2):
            with pytest.raises(SourceError, match="two rows with id = 1"):
                reader.read()
        connection.execute("delete from halves where part = 1 and id = 1")
        assert [(e.op, e.key) for e in reader.read()][:2] == [("upsert", "2"), ("upsert", "1")]


def test_two_rows_of_one_time_are_twins_in_the_log_too(postgres: Postgres) -> None:
    columns, there = (
        "at timestamptz, n int, primary key (at, n)",
        "values ('2026-01-02 10:00+01', 1)",
    )
    with listened(postgres, "moments", columns, there, key="at") as (connection, reader):
        assert [event.key for event in reader.read()] == ["2026-01-02T09:00:00+00:00"]
        connection.execute("insert into moments values ('2026-01-02 09:00+00', 2)")
        with pytest.raises(SourceError, match="two rows with at = 2026-01-02 09:00"):
            reader.read()


def test_a_key_of_several_columns_goes_through_snapshot_log_and_a_stop_between(
    postgres: Postgres,
) -> None:
    columns = "at timestamp, part text, text text, primary key (at, part)"
    rows = (
        "select timestamp '2026-01-02 10:00' + n * interval '1 hour', p, 'old'"
        " from generate_series(0, 2) n, unnest(array['a', 'b']) p"
    )
    said = {"key": ("at", "part"), "batch_rows": 2}
    with listened(postgres, "halves2", columns, rows, **said) as (connection, reader):
        connection.execute("alter table halves2 alter text set storage external")
        assert [event.key for event in reader.read(stop_after=1)] == [
            '["2026-01-02T10:00:00","a"]', '["2026-01-02T10:00:00","b"]',
        ]  # fmt: skip
        connection.execute("update halves2 set text = 'new' where part = 'b'")
        connection.execute("delete from halves2 where at = '2026-01-02 12:00' and part = 'a'")
        connection.execute(
            "update halves2 set part = 'c' where at = '2026-01-02 10:00' and part = 'a'"
        )
        reader.read()
        reader.read()
        expected = connection.execute("select at, part, text from halves2").fetchall()
        assert latest(reader.events) == {
            f'["{at.isoformat()}","{part}"]': text for at, part, text in expected
        }
        assert len(reader.events) == 8, (
            "2 and 3 rows of snapshots; an update, a delete and an insert"
        )
        connection.execute("alter table halves2 add column n int")
        connection.execute("insert into halves2 values ('2026-01-03', 'a', repeat('long', 9999))")
        connection.execute("update halves2 set n = 1 where at = '2026-01-03'")
        assert [(e.row["n"], len(e.row["text"])) for e in reader.read()] == [
            (None, 39996),
            (1, 39996),
        ]
        with pytest.raises(SourceError, match="two rows with at = 2026-01-02 10:00:00"):
            Reader(
                postgres, "halves2", key="at", slot=reader.open().name.removeprefix("postgres/")
            ).read()


def test_a_partitioned_table_is_listened_to_by_its_own_name(postgres: Postgres) -> None:
    connection = postgres.connect()
    connection.execute("create table parts (id int primary key, text text) partition by range (id)")
    for low in (0, 10):
        connection.execute(
            f"create table parts_{low} partition of parts for values from ({low}) to ({low + 10})"
        )
    connection.execute("create publication autoglm_p_parts for table parts")
    connection.execute("insert into parts values (1, 'a')")
    reader = Reader(postgres, "parts")
    with pytest.raises(SourceError, match="publish_via_partition_root") as caught:
        reader.read()
    assert caught.value.code == "source.no_publication"
    connection.execute("drop publication autoglm_p_parts")
    connection.execute(source_of(postgres, "parts").setup_sql)
    assert [event.key for event in reader.read()] == ["1"]
    connection.execute("insert into parts values (2, 'b'), (12, 'c')")
    connection.execute("update parts set id = 11, text = 'moved' where id = 1")
    connection.execute("delete from parts where id = 2")
    assert {(e.op, e.key) for e in reader.read()} == {
        ("upsert", "2"), ("upsert", "12"), ("delete", "1"), ("upsert", "11"), ("delete", "2"),
    }  # fmt: skip
    reader.open().drop()
    connection.close()


def test_a_column_that_is_renamed_stops_by_name_and_its_rows_come_when_it_is_back(
    postgres: Postgres, table: Any
) -> None:
    name, connection = table
    config = SourceConfig(kind="postgres", url=postgres.url, table=name, key="id")
    reader = Reader(postgres, name)
    reader.open = lambda: PostgresSource(
        config, project="p", base=Path(), batch_rows=100, columns=("text",)
    )
    reader.read()
    connection.execute(f"alter table {name} rename column text to content")
    connection.execute(f"insert into {name} values (11, 'in between'), (12, 'gone')")
    connection.execute(f"delete from {name} where id = 12")
    for _attempt in range(2):
        with pytest.raises(SourceError, match="no column 'text'") as caught:
            reader.read()
        assert caught.value.code == "source.no_column"
    connection.execute(f"alter table {name} rename column content to text")
    events = reader.read()
    assert [(e.op, e.key) for e in events if e.op != "dead"] == [("upsert", "11"), ("delete", "12")]
    assert events[0].row["text"] == "in between"
    assert [e.row["code"] for e in events if e.op == "dead"] == ["source.unchanged_lost"]


def test_rows_written_while_the_key_had_another_name_stop_by_name(
    postgres: Postgres, table: Any
) -> None:
    name, connection = table
    reader = Reader(postgres, name)
    reader.read()
    connection.execute(f"alter table {name} rename column id to nr")
    connection.execute(f"insert into {name} values (11, 'x')")
    connection.execute(f"alter table {name} rename column nr to id")
    for _attempt in range(2):
        with pytest.raises(SourceError, match="had no column 'id'") as caught:
            reader.read()
        assert caught.value.code == "source.no_column"


def test_an_empty_key_is_a_dead_letter_in_the_snapshot_and_in_the_log(postgres: Postgres) -> None:
    there = "values (''), ('a')"
    with listened(postgres, "blank", "id text primary key", there) as (connection, reader):
        assert [event.op for event in reader.read()] == ["dead", "upsert"]
        connection.execute("update blank set id = '' where id = 'none'")
        connection.execute("delete from blank where id = ''")
        connection.execute("insert into blank values ('')")
        assert [event.row.get("code") for event in reader.read()] == ["source.null_key"] * 2


def test_status_tells_lag_and_advises_a_limit(postgres: Postgres, table: Any) -> None:
    name, connection = table
    reader = Reader(postgres, name)
    assert reader.open().status()["state"] == "not made yet"
    reader.read()
    connection.execute(
        f"insert into {name} select n, repeat('x', 500) from generate_series(100, 400) n"
    )
    found = reader.open().status()
    assert int(str(found["lag_bytes"])) > 100_000
    assert "max_slot_wal_keep_size" in str(found["advice"])
    reader.read()
    assert int(str(reader.open().status()["lag_bytes"])) < 10_000


def test_kills_while_the_table_changes_neither_lose_nor_double_nor_reorder(
    postgres: Postgres, table: Any, tmp_path: Path
) -> None:
    name, connection = table
    draw, changes, kills = random.Random(3), [("upsert", str(n)) for n in range(1, 11)], 0
    child = Path(__file__).parents[1] / "streaming" / "kill_listener.py"
    command = [sys.executable, str(child), postgres.url, name, str(tmp_path / "b.db")]

    def change() -> None:
        with connection.transaction():
            for _statement in range(draw.randint(1, 90)):
                key, kind = draw.randint(1, 60), draw.choice(["insert", "update", "delete"])
                statement = {
                    "insert": f"insert into {name} values ({key}, '{draw.random()}') on conflict do nothing",
                    "update": f"update {name} set text = '{draw.random()}' where id = {key}",
                    "delete": f"delete from {name} where id = {key}",
                }[kind]
                if connection.execute(statement).rowcount:
                    changes.append(("delete" if kind == "delete" else "upsert", str(key)))

    subprocess.run([*command], env={**os.environ, "AUTOGLM_FAILPOINT": "hop2.before_commit:kill"}, check=False)  # fmt: skip
    subprocess.run(command, check=True)  # the snapshot, whole; from here on each change counts
    while kills < 4:
        for _transaction in range(4):
            change()
        point = draw.choice(["hop2.before_commit", "hop2.after_commit"])
        arming = {"AUTOGLM_FAILPOINT": f"{point}:kill@{draw.randint(1, 3)}"}
        done = subprocess.run(command, env={**os.environ, **arming}, check=False)
        kills += done.returncode == -9
    subprocess.run(command, check=True)
    broker = SqliteBroker(tmp_path / "b.db", partitions=2)
    events: list[ChangeEvent] = []
    for number in range(2):
        offset = 0
        while (found := broker.fetch("t", number, offset, max_events=1000)) is not None:
            events += found.events
            offset = found.range.end
    broker.close()
    assert latest(events) == dict(
        connection.execute(f"select id::text, text from {name}").fetchall()
    )
    for key in {event.key for event in events}:
        assert [e.op for e in events if e.key == key] == [op for op, k in changes if k == key]


def test_keys_of_bytes_and_columns_with_a_percent_sign_find_values_that_the_log_left_out(
    postgres: Postgres,
) -> None:
    columns = '"i%d" bytea primary key, text text, "100%" int'
    rows = r"select ('\xff0' || n)::bytea, repeat('x', 9999), n from generate_series(1, 5) n"
    with listened(postgres, "of_bytes", columns, rows, key="i%d", batch_rows=2) as (admin, reader):
        admin.execute("alter table of_bytes alter text set storage external")
        reader.read(stop_after=1)
        reader.read()
        named = [event.key for event in reader.events]
        assert len(set(named)) == len(named) == 5
        admin.execute("update of_bytes set text = repeat('y', 9999)")
        admin.execute('update of_bytes set "100%" = 0')
        found = reader.read()
        assert [event.key for event in found] == named * 2
        assert {event.row["text"] for event in found} == {"y" * 9999}


def test_a_row_that_moved_and_is_gone_leaves_nothing_under_its_first_key(
    postgres: Postgres,
) -> None:
    columns = "shop text, id text, text text, primary key (shop, id)"
    rows = "values ('de', 'a', repeat('x', 9999))"
    with listened(postgres, "moved", columns, rows, key=("shop", "id")) as (connection, reader):
        connection.execute("alter table moved alter text set storage external")
        connection.execute("update moved set text = repeat('y', 9999)")
        reader.read()
        connection.execute("update moved set shop = 'fr'")
        connection.execute("delete from moved")
        connection.execute("alter table moved alter id type int using id::int")
        assert [(event.op, event.key) for event in reader.read() if event.op != "dead"] == [
            ("delete", '["de","a"]'), ("delete", '["fr","a"]'),
        ]  # fmt: skip


def test_more_rows_without_a_key_than_a_batch_holds_are_each_a_letter(
    postgres: Postgres, tmp_path: Path
) -> None:
    rows = "select 'de', case when n < 3 then n end from generate_series(1, 9) n"
    said = {"key": ("shop", "id"), "batch_rows": 2}
    with (
        listened(postgres, "nameless", "shop text, id int", rows, **said) as (connection, reader),
        closing(SqliteBroker(tmp_path / "b.db", partitions=1)) as broker,
    ):
        connection.execute("alter table nameless replica identity full")
        collect(reader.open(), broker, topic="t", cancel=threading.Event())
        events = stored(broker)
        assert len({event.key for event in events}) == len(events) == 9
        connection.execute("insert into nameless values ('de', 3)")
        collect(reader.open(), broker, topic="t", cancel=threading.Event())
        assert [event.key for event in stored(broker)[9:]] == ['["de","3"]']


def stored(broker: SqliteBroker) -> list[ChangeEvent]:
    events: list[ChangeEvent] = []
    while len(events) < broker.end_offset("t", 0):
        fetched = broker.fetch("t", 0, len(events), max_events=100)
        assert fetched is not None
        events += fetched.events
    return events


def test_keys_with_blanks_or_of_an_address_keep_one_name_in_snapshot_and_log(
    postgres: Postgres,
) -> None:
    columns = "shop char(4), host inet, text text, primary key (shop, host)"
    rows = "select 'de', '10.0.0.0'::inet + n, 'old' from generate_series(1, 5) n"
    said = {"key": ("shop", "host"), "batch_rows": 2}
    with listened(postgres, "padded", columns, rows, **said) as (connection, reader):
        reader.read(stop_after=1)
        connection.execute("update padded set text = 'new'")
        connection.execute("delete from padded where host > '10.0.0.3'")
        reader.read()
        reader.read()
        assert latest(reader.events) == {f'["de  ","10.0.0.{n}"]': "new" for n in range(1, 4)}
        connection.execute("alter table padded drop constraint padded_pkey")
        connection.execute("alter table padded replica identity full")
        connection.execute("insert into padded values ('de', '10.0.0.1', 'twin')")
        with pytest.raises(SourceError, match="two rows with shop = de"):
            reader.read()
