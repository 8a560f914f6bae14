"""MariaDB as it is, started here: snapshot and binary log without a gap, an overlap, or silence."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest

from autoglm.contracts.change_event import ChangeEvent
from autoglm.errors import SourceError
from autoglm.integrations.mysql import MysqlSource
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.collector import collect
from autoglm.streaming.config import SourceConfig
from servers import MariaDb, until


class Listened:
    """A table and a reader that stores as the collector does, in memory."""

    def __init__(self, server: MariaDb, name: str, *, batch_rows: int = 100, **said: Any) -> None:
        self.server, self.name, self.position = server, name, ""
        self.events: list[ChangeEvent] = []
        said = {"key": "id", **said}
        config = SourceConfig(kind="mysql", url=server.url, table=name, **said)
        self.open = lambda: MysqlSource(config, project="p", base=Path(), batch_rows=batch_rows)

    def do(self, *statements: str, once: bool = False) -> None:
        """Each in a transaction of its own, or all in one."""
        with self.server.connect() as connection, connection.cursor() as cursor:
            for statement in ("begin", *statements, "commit") if once else statements:
                cursor.execute(statement.format(t=self.name))

    def read(self, *, stop_after: int | None = None) -> list[ChangeEvent]:
        new: list[ChangeEvent] = []
        for number, batch in enumerate(self.open().read(self.position), start=1):
            new += batch.events
            self.position = batch.position
            if number == stop_after:
                break
        self.events += new
        return new


@pytest.fixture
def table(mariadb: MariaDb, request: pytest.FixtureRequest) -> Listened:
    return made(mariadb, re.sub(r"\W", "_", request.node.name.removeprefix("test_"))[-40:])


def made(server: MariaDb, name: str, **said: Any) -> Listened:
    listened = Listened(server, name, **said)
    listened.do(
        "create table {t} (id bigint primary key, text text, label varchar(9))",
        "insert into {t} select seq, concat('row ', seq), 'a' from seq_1_to_10",
    )
    return listened


def shown(events: list[ChangeEvent]) -> list[tuple[str, str, Any]]:
    return [(event.op, event.key, event.row.get("text")) for event in events]


def test_snapshot_then_every_change_in_commit_order(table: Listened) -> None:
    assert len(table.read()) == 10
    table.do(
        "insert into {t} values (11, 'ü', null)",
        "update {t} set text = 'new' where id = 3",
        "update {t} set id = 30 where id = 4",
        "delete from {t} where id = 5",
    )
    table.do(
        "update {t} set text = 'twice' where id = 1", "delete from {t} where id = 1", once=True
    )
    assert shown(table.read()) == [
        ("upsert", "11", "ü"), ("upsert", "3", "new"), ("delete", "4", None),
        ("upsert", "30", "row 4"), ("delete", "5", None), ("upsert", "1", "twice"),
        ("delete", "1", None),
    ]  # fmt: skip
    assert table.read() == []
    versions = [event.version for event in table.events[10:]]
    assert versions == sorted(set(versions))
    assert versions[0] > table.events[0].version


def test_stopped_in_the_snapshot_and_changed_meanwhile(mariadb: MariaDb) -> None:
    table = made(mariadb, "interrupted", batch_rows=3)
    table.read(stop_after=1)  # keys 1, 10, 2
    table.do(
        "update {t} set text = 'below' where id = 1",
        "update {t} set text = 'above' where id = 9",
        "delete from {t} where id = 10",
        "delete from {t} where id = 8",
    )
    table.read(stop_after=1)
    table.do("update {t} set text = 'third' where id = 7")
    table.read()
    table.do("insert into {t} values (99, 'last', 'a')")
    table.read()
    found = {event.key: event for event in table.events}
    held = {key: event.row["text"] for key, event in found.items() if event.op == "upsert"}
    assert held == {"1": "below", "2": "row 2", "3": "row 3", "4": "row 4", "5": "row 5",
                    "6": "row 6", "7": "third", "9": "above", "99": "last"}  # fmt: skip
    upserts = sorted(event.key for event in table.events if event.op == "upsert")
    assert upserts == sorted([*"12345679", "10", "1", "99"]), "each change once"


def test_stopped_within_a_transaction_and_after_the_log_moved_to_another_file(
    mariadb: MariaDb,
) -> None:
    table = made(mariadb, "bulk", batch_rows=4)
    table.read()
    table.do("insert into {t} select seq, 'bulk', 'a' from seq_100_to_122")
    table.do("flush binary logs", "insert into {t} values (500, 'after', 'a')")
    for _attempt in range(9):
        table.read(stop_after=1)
    assert [event.key for event in table.events[10:]] == [*map(str, range(100, 123)), "500"]


def test_following_ends_when_cancelled(table: Listened, tmp_path: Path) -> None:
    broker, cancel = SqliteBroker(tmp_path / "b.db", partitions=1), threading.Event()
    thread = threading.Thread(
        target=collect, args=(table.open(), broker),
        kwargs={"topic": "t", "cancel": cancel, "follow": True},
    )  # fmt: skip
    thread.start()
    try:
        until(lambda: broker.end_offset("t", 0) == 10)
        table.do("insert into {t} values (11, 'x', 'a')")
        until(lambda: broker.end_offset("t", 0) == 11)
    finally:
        cancel.set()
        thread.join(60)
    assert not thread.is_alive()
    broker.close()


def test_values_are_the_same_in_the_snapshot_and_in_the_log(mariadb: MariaDb) -> None:
    table = Listened(mariadb, "typed")
    table.do(
        "create table {t} (id int primary key, a tinyint(1), b decimal(5,2), c double, d datetime(3),"
        " e date, f json, g blob, h enum('x','y'), i timestamp null)"
    )
    values = """({0}, 1, 1.10, 0.5, '2026-01-02 03:04:05.250', '2026-01-02', '{{"b": [1]}}', 'raw', 'y',
        '2026-01-02 03:04:05')"""
    table.do(f"insert into {{t}} values {values.format(1)}".replace("{{", "{").replace('{"b": [1]}', '{{"b": [1]}}'))  # fmt: skip
    snapshot = table.read()[0].row
    table.do(f"insert into {{t}} values {values.format(2)}".replace("{{", "{").replace('{"b": [1]}', '{{"b": [1]}}'))  # fmt: skip
    logged = table.read()[0].row
    assert {**snapshot, "id": 2} == logged
    assert (logged["b"], logged["e"], logged["h"]) == ("1.10", "2026-01-02", "y")


def test_a_changed_schema_goes_on_with_the_new_columns(table: Listened) -> None:
    table.read()
    table.do(
        "alter table {t} add column more int", "insert into {t} values (11, 'x', 'a', 7)",
        "alter table {t} drop column label", "insert into {t} values (12, 'y', 8)",
    )  # fmt: skip
    assert [dict(event.row) for event in table.read()] == [
        {"id": 11, "text": "x", "label": "a", "more": 7}, {"id": 12, "text": "y", "more": 8},
    ]  # fmt: skip


def test_a_truncate_stops_by_name_or_is_passed_by_when_told(table: Listened) -> None:
    table.read()
    table.do("truncate table {t}", "insert into {t} values (1, 'new', 'a')")
    for _attempt in range(2):
        with pytest.raises(SourceError) as caught:
            table.read()
        assert caught.value.code == "source.truncated"
    keeping = Listened(table.server, table.name, truncate="keep")
    keeping.position = table.position
    assert shown(keeping.read()) == [("upsert", "1", "new")]


def test_a_purged_log_is_no_silent_loss(table: Listened) -> None:
    table.read()
    table.do("insert into {t} values (11, 'x', 'a')", "flush binary logs")
    with table.server.connect() as connection, connection.cursor() as cursor:

        def is_purged() -> bool:
            """A log that was read a moment ago is not purged at once."""
            cursor.execute("show master status")
            cursor.execute(f"purge binary logs to '{cursor.fetchone()[0]}'")
            cursor.execute("show binary logs")
            return len(cursor.fetchall()) == 1

        until(is_purged)
    for _attempt in range(2):
        with pytest.raises(SourceError) as caught:
            table.read()
        assert caught.value.code == "source.log_lost"


def test_a_table_renamed_or_dropped_stops_by_name(table: Listened) -> None:
    table.read()
    table.do("rename table {t} to other_name", "create table {t} like other_name")
    with pytest.raises(SourceError, match="renamed"):
        table.read()
    table.do("drop table {t}", "drop table other_name")
    with pytest.raises(SourceError) as caught:
        table.read()
    assert caught.value.code == "source.no_table"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"url": "mysql://root@127.0.0.1:1/app"}, "source.unreachable"),
        ({"url": "mysql://root@127.0.0.1"}, "source.bad_url"),
        ({"key": "no"}, "source.no_column"),
        ({"table": "no"}, "source.no_table"),
    ],
)
def test_what_is_missing_is_named(said: dict[str, str], code: str, table: Listened) -> None:
    asked = {"kind": "mysql", "url": table.server.url, "table": table.name, "key": "id", **said}
    with pytest.raises(SourceError) as caught:
        list(MysqlSource(SourceConfig(**asked), project="p", base=Path(), batch_rows=9).read(""))
    assert caught.value.code == code


def test_a_log_without_column_names_is_refused(table: Listened) -> None:
    table.do("set global binlog_row_metadata = 'NO_LOG'")
    try:
        with pytest.raises(SourceError, match="binlog_row_metadata") as caught:
            table.read()
    finally:
        table.do("set global binlog_row_metadata = 'FULL'")
    assert caught.value.code == "source.log_settings"


def test_rows_written_while_a_column_had_another_name_come_with_its_value_once_it_is_back(
    mariadb: MariaDb,
) -> None:
    table = made(mariadb, "renamed_column")
    config = SourceConfig(kind="mysql", url=mariadb.url, table=table.name, key="id")
    table.open = lambda: MysqlSource(
        config, project="p", base=Path(), batch_rows=100, columns=("text", "label")
    )
    table.read()
    table.do(
        "alter table {t} rename column text to content", "delete from {t} where id = 2",
        "insert into {t} values (11, 'in between', 'b'), (12, 'gone', 'b')",
        "delete from {t} where id = 12",
    )  # fmt: skip
    for _attempt in range(2):
        with pytest.raises(SourceError, match="no column 'text'") as caught:
            table.read()
        assert caught.value.code == "source.no_column"
    table.do("alter table {t} rename column content to text")
    deleted, came, dead, gone = table.read()
    assert [(e.op, e.key) for e in (deleted, came, gone)] == [
        ("delete", "2"), ("upsert", "11"), ("delete", "12"),
    ]  # fmt: skip
    assert (came.row["text"], came.row["label"]) == ("in between", "b")
    assert dead.row["code"] == "source.unchanged_lost"


def test_columns_that_changed_places_keep_the_names_of_when_the_row_was_written(
    table: Listened,
) -> None:
    table.read()
    table.do(
        "insert into {t} values (11, 'a text', 'a label')",
        "alter table {t} rename column text to label, rename column label to text",
        "insert into {t} (id, text, label) values (12, 'short', 'then long')",
    )
    assert [(e.row["text"], e.row["label"]) for e in table.read()] == [
        ("a text", "a label"), ("short", "then long"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ("alter table {t} rename column id to nr", "alter table {t} rename column nr to id",
         "source.no_column"),
        ("set global binlog_row_metadata = 'NO_LOG'", "set global binlog_row_metadata = 'FULL'",
         "source.log_settings"),
    ],
)  # fmt: skip
def test_rows_whose_key_the_log_does_not_name_stop_by_name(
    before: str, after: str, code: str, table: Listened
) -> None:
    table.read()
    try:
        table.do("insert into {t} values (11, 'x', 'a')", before, "insert into {t} values (12, 'y', 'a')")  # fmt: skip
    finally:
        table.do(after)
    for _attempt in range(2):
        with pytest.raises(SourceError) as caught:
            table.read()
        assert caught.value.code == code
        assert "slot" in caught.value.next_step


def test_a_row_without_a_key_is_a_dead_letter(mariadb: MariaDb) -> None:
    table = Listened(mariadb, "loose")
    table.do("create table {t} (id int, text text)", "insert into {t} values (null, 'a'), (1, 'b')")
    assert sorted(event.op for event in table.read()) == ["dead", "upsert"]
    table.do("insert into {t} values (null, 'c')")
    assert [event.op for event in table.read()] == ["dead"]


def test_a_key_that_two_rows_have_stops_the_snapshot_and_the_log(mariadb: MariaDb) -> None:
    table = Listened(mariadb, "halves")
    table.do(
        "create table {t} (id int, part int, primary key (id, part))",
        "insert into {t} values (1, 1), (1, 2)",
    )
    with pytest.raises(SourceError, match="two rows with id = 1") as caught:
        table.read()
    assert (caught.value.code, table.events) == ("source.duplicate_key", [])
    table.do("delete from {t} where part = 2")
    assert [event.key for event in table.read()] == ["1"]
    table.do("insert into {t} values (2, 1), (1, 3)")
    for _attempt in range(2):
        with pytest.raises(SourceError, match="two rows with id = 1"):
            table.read()
    table.do("delete from {t} where part = 1 and id = 1")
    assert [(e.op, e.key) for e in table.read()][:2] == [("upsert", "2"), ("upsert", "1")]


def test_two_rows_of_one_time_are_twins_in_the_log_too(mariadb: MariaDb) -> None:
    table = Listened(mariadb, "moments", key="at")
    table.do(
        "create table {t} (at datetime(3), n int, primary key (at, n))",
        "insert into {t} values ('2026-01-02 10:00:00.250', 1)",
    )
    assert [event.key for event in table.read()] == ["2026-01-02T10:00:00.250000"]
    table.do("insert into {t} values ('2026-01-02 10:00:00.250', 2)")
    with pytest.raises(SourceError, match="two rows with at = 2026-01-02T10:00:00.25"):
        table.read()


def test_a_key_of_several_columns_goes_through_snapshot_log_and_a_stop_between(
    mariadb: MariaDb,
) -> None:
    table = Listened(mariadb, "halves2", key=("at", "part"), batch_rows=2)
    table.do(
        "create table {t} (at datetime, part varchar(9), text text, primary key (at, part))",
        "insert into {t} select timestampadd(hour, seq div 2, '2026-01-02 10:00'),"
        " if(seq % 2, 'b', 'a'), 'old' from seq_0_to_5",
    )
    assert [event.key for event in table.read(stop_after=1)] == [
        '["2026-01-02T10:00:00","a"]', '["2026-01-02T10:00:00","b"]',
    ]  # fmt: skip
    table.do(
        "update {t} set text = 'new' where part = 'b'",
        "delete from {t} where at = '2026-01-02 12:00' and part = 'a'",
        "update {t} set part = 'c' where at = '2026-01-02 10:00' and part = 'a'",
    )
    table.read()
    table.read()
    newest: dict[str, ChangeEvent] = {}
    for event in table.events:
        assert event.key not in newest or newest[event.key].version < event.version
        newest[event.key] = event
    with table.server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("select at, part, text from halves2")
        assert {k: e.row["text"] for k, e in newest.items() if e.op == "upsert"} == {
            f'["{at.isoformat()}","{part}"]': text for at, part, text in cursor.fetchall()
        }
    assert len(table.events) == 8, "2 and 3 rows of snapshots; an update, a delete and an insert"


def test_an_empty_key_is_a_dead_letter_in_the_snapshot_and_in_the_log(mariadb: MariaDb) -> None:
    table = Listened(mariadb, "blank")
    table.do("create table {t} (id varchar(9) primary key)", "insert into {t} values (''), ('a')")
    assert sorted(event.op for event in table.read()) == ["dead", "upsert"]
    table.do("delete from {t} where id = ''", "insert into {t} values ('')")
    assert [event.row.get("code") for event in table.read()] == ["source.null_key"] * 2


def test_keys_of_bytes_keep_one_name_in_snapshot_and_log_and_a_stop_passes_none_by(
    mariadb: MariaDb,
) -> None:
    table = Listened(mariadb, "of_bytes", key=("id", "n%"), batch_rows=2)
    table.do(
        "create table {t} (id binary(3), `n%` int, text text, more binary(2), primary key (id, `n%`))",
        "insert into {t} values (x'800000', 1, '', null), (x'810000', 1, '', null),"
        " (x'fffd01', 1, '', x'0100'), (x'000000', 1, '', null), (x'fffe00', 1, '', null)",
    )
    table.read(stop_after=1)
    table.read()
    named = {event.key for event in table.events}
    assert len(named) == len(table.events) == 5
    table.do("update {t} set text = 'new'", "delete from {t} where id > x'ff'")
    found = table.read()
    assert [event.op for event in found] == ["upsert"] * 5 + ["delete"] * 2
    assert {event.key for event in found} == named
    assert [event.row["more"] for event in found if event.row.get("more")] == ["\x01\0"]


def test_more_rows_without_a_key_than_a_batch_holds_are_each_a_letter(mariadb: MariaDb) -> None:
    table = Listened(mariadb, "nameless", key=("shop", "id"), batch_rows=2)
    table.do(
        "create table {t} (shop varchar(9), id int)",
        "insert into {t} select 'de', if(seq < 3, seq, null) from seq_1_to_9",
    )
    batches = list(table.open().read(""))
    # A broker takes two batches with one position for the same one.
    assert len({batch.position for batch in batches}) == len(batches)
    assert len({event.key for batch in batches for event in batch.events}) == 9
    table.position = batches[-1].position
    table.do("insert into {t} values ('de', 3)")
    assert [event.key for event in table.read()] == ['["de","3"]']


def test_values_are_spelled_in_the_log_as_in_the_snapshot(mariadb: MariaDb) -> None:
    table = Listened(mariadb, "spelled", key=("a", "b", "c"))
    table.do(
        "create table {t} (a uuid, b inet6, c bit(9), d set('x', 'y', 'z'), text text,"
        " primary key (a, b, c))",
        "insert into {t} values ('017f22e2-79b0-7cc3-98c4-dc0c0c07398f', '::ffff:1.2.3.4', 258,"
        " 'z,x', 'old'), ('00000000-0000-0000-0000-000000000000', '::', 0, null, 'old')",
    )
    before = {event.key: event.row for event in table.read()}
    table.do("update {t} set text = 'new'", "delete from {t} where c = 258")
    *changed, deleted = table.read()
    assert {e.key: {**e.row, "text": "old"} for e in changed} == before
    assert (deleted.op, deleted.key) == ("delete", max(before))


def test_a_snapshot_by_a_time_begins_anew_and_forgets_what_went_meanwhile(mariadb: MariaDb) -> None:
    table = Listened(mariadb, "hours", key=("day", "at"), batch_rows=1)
    table.do(
        "create table {t} (day int, at time, text text, primary key (day, at))",
        "insert into {t} values (1, '9:00', 'a'), (1, '10:00', 'b'), (1, '30:00', 'c')",
    )
    table.read(stop_after=2)
    table.do("delete from {t} where at = '9:00'", "update {t} set text = 'new' where at = '10:00'")
    seen = table.position
    assert all(batch.position != seen for batch in table.open().read(seen))
    table.read()
    newest = {event.key: event for event in table.events}
    assert {k: e.row.get("text") for k, e in newest.items()} == {
        '["1","9:00:00"]': None, '["1","10:00:00"]': "new", '["1","1 day, 6:00:00"]': "c",
    }  # fmt: skip
