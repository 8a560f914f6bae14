"""The three declared ways to poll: what each promises, it keeps."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from autoglm.contracts.change_event import ChangeBatch
from autoglm.errors import SourceError
from autoglm.streaming.collectors.sql_poll import SqlPollSource
from autoglm.streaming.config import SourceConfig
from servers import Postgres


def source_of(server: Postgres, *, batch_rows: int = 100, **said: Any) -> SqlPollSource:
    url = server.url.replace("postgresql:", "postgresql+psycopg:")
    return SqlPollSource(
        SourceConfig(url=url, **{"key": "id", **said}),
        project="p",
        base=Path(),
        batch_rows=batch_rows,
    )


def by_transaction(server: Postgres, table: str, **said: Any) -> SqlPollSource:
    return source_of(server, table=table, cursor="changed_in", mode="snapshot_cursor", **said)


def make_table(server: Postgres, name: str) -> Any:
    connection = server.connect()
    connection.execute(f"drop table if exists {name}")
    connection.execute(f"create table {name} (id bigserial primary key, text text)")
    return connection


def prepared(server: Postgres, name: str) -> Any:
    """A table with what `autoglm source setup` prints."""
    connection = make_table(server, name)
    connection.execute(by_transaction(server, name).setup_sql)
    return connection


def keys(batches: list[ChangeBatch]) -> list[str]:
    return [event.key for batch in batches for event in batch.events]


def test_a_late_commit_is_lost_by_a_growing_number_and_found_by_transaction(
    postgres: Postgres,
) -> None:
    with prepared(postgres, "late") as admin, postgres.connect() as early, postgres.connect() as on:
        naive = source_of(postgres, table="late", cursor="id")
        ours = by_transaction(postgres, "late")
        positions, seen = {naive: "", ours: ""}, {naive: [], ours: []}

        def poll() -> None:
            for source in (naive, ours):
                batches = list(source.read(positions[source]))
                seen[source] += keys(batches)
                positions[source] = batches[-1].position if batches else positions[source]

        early.execute("begin")
        early.execute("insert into late (text) values ('takes number 1')")
        on.execute("insert into late (text) values ('takes number 2')")
        poll()
        early.execute("commit")
        poll()
        admin.execute("insert into late (text) values ('number 3')")
        poll()
    assert seen[naive] == ["2", "3"], "the gap that a growing number has"
    assert seen[ours] == ["1", "2", "3"]


def test_updates_and_new_rows_arrive_once_and_versions_grow(postgres: Postgres) -> None:
    with prepared(postgres, "updated") as connection:
        connection.execute(
            "insert into updated (text) select n::text from generate_series(1, 25) n"
        )
        source = by_transaction(postgres, "updated", batch_rows=10)
        first = list(source.read(""))
        assert [len(batch.events) for batch in first] == [10, 10, 5]
        # Whoever died after the first batch goes on behind it, within one transaction.
        assert sorted(keys(list(source.read(first[0].position)))) == sorted(keys(first[1:]))
        connection.execute("update updated set text = 'new' where id = 7")
        after = list(source.read(first[-1].position))
        assert keys(after) == ["7"]
        assert after[0].events[0].version > max(e.version for b in first for e in b.events)
        assert list(source.read(after[-1].position)) == []


def test_a_key_of_several_columns_is_polled_by_transaction_and_goes_on_within_one(
    postgres: Postgres,
) -> None:
    connection = postgres.connect()
    connection.execute("create table halves3 (id int, part text, primary key (id, part))")
    said = {"key": ("id", "part"), "batch_rows": 2}
    connection.execute(by_transaction(postgres, "halves3", **said).setup_sql)
    connection.execute("insert into halves3 values (1, 'a'), (1, 'b'), (2, 'a'), (2, 'b')")
    first = next(by_transaction(postgres, "halves3", **said).read(""))
    rest = list(by_transaction(postgres, "halves3", **said).read(first.position))
    assert keys([first, *rest]) == ['["1","a"]', '["1","b"]', '["2","a"]', '["2","b"]']
    connection.close()


def test_the_setup_stamps_rows_that_were_there_and_may_run_twice(postgres: Postgres) -> None:
    with make_table(postgres, "older") as connection:
        connection.execute("insert into older (text) values ('before'), ('too')")
        setup = by_transaction(postgres, "older").setup_sql
        connection.execute(setup)
        connection.execute(setup)
        assert sorted(keys(list(by_transaction(postgres, "older").read("")))) == ["1", "2"]


def test_a_change_of_mode_reads_all_again_with_versions_that_still_grow(
    postgres: Postgres,
) -> None:
    with prepared(postgres, "moded") as connection:
        connection.execute("insert into moded (text) values ('a')")
        position, versions = "", []
        for mode in ("full_diff", "snapshot_cursor", "full_diff", "snapshot_cursor"):
            cursor = "changed_in" if mode == "snapshot_cursor" else ""
            source = source_of(postgres, table="moded", cursor=cursor, mode=mode)
            batches = list(source.read(position))
            position = batches[-1].position
            versions += [event.version for batch in batches for event in batch.events]
        assert versions == sorted(set(versions))
        assert len(versions) == 4


def test_rows_of_another_servers_transactions_stop_the_poll(postgres: Postgres) -> None:
    with prepared(postgres, "restored") as connection:
        connection.execute("alter table restored disable trigger user")
        connection.execute("insert into restored (text, changed_in) values ('a', '99999999')")
        with pytest.raises(SourceError) as caught:
            list(by_transaction(postgres, "restored").read(""))
        assert caught.value.code == "source.cursor_ahead"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"cursor": "id"}, "source.no_snapshot_cursor"),
        ({"cursor": "changed"}, "source.no_column"),
        ({"table": "gone"}, "source.no_table"),
    ],
)
def test_a_table_without_what_the_mode_needs_is_refused(
    said: dict[str, str], code: str, postgres: Postgres
) -> None:
    with prepared(postgres, "plain_table"):
        asked = {"table": "plain_table", "cursor": "changed_in", **said}
        with pytest.raises(SourceError) as caught:
            list(source_of(postgres, mode="snapshot_cursor", **asked).read(""))
        assert caught.value.code == code


def test_a_table_renamed_between_two_polls_stops_with_its_name_and_goes_on_after(
    postgres: Postgres,
) -> None:
    with prepared(postgres, "named") as connection:
        connection.execute("insert into named (text) values ('a')")
        source = by_transaction(postgres, "named")
        position = list(source.read(""))[-1].position
        connection.execute("alter table named rename to other")
        with pytest.raises(SourceError, match="named") as caught:
            list(source.read(position))
        assert caught.value.code == "source.no_table"
        connection.execute("alter table other rename to named")
        connection.execute("insert into named (text) values ('b')")
        assert keys(list(source.read(position))) == ["2"]


def sqlite_rows(folder: Path, *times: str) -> SqlPollSource:
    with sqlite3.connect(folder / "a.db") as connection:
        connection.execute("create table if not exists rows (id integer primary key, at text)")
        connection.executemany("insert into rows (at) values (?)", [(time,) for time in times])
    connection.close()
    config = SourceConfig(
        url="sqlite:///a.db", table="rows", key="id", cursor="at", lag_window=timedelta(seconds=60)
    )
    return SqlPollSource(config, project="p", base=folder, batch_rows=10)


def test_a_late_row_within_the_window_arrives_once_and_one_outside_is_what_the_promise_says(
    tmp_path: Path,
) -> None:
    source = sqlite_rows(tmp_path, "2026-01-01 10:00:00", "2026-01-01 10:01:00")
    assert "shorter than 60 s" in source.promise
    first = list(source.read(""))
    sqlite_rows(tmp_path, "2026-01-01 10:00:30", "2026-01-01 09:00:00")
    assert keys(list(source.read(first[-1].position))) == ["3"]


def test_a_clock_that_ran_ahead_stops_the_poll_before_anything_is_passed_by(tmp_path: Path) -> None:
    ahead = (datetime.now(UTC) + timedelta(days=40)).strftime("%Y-%m-%d %H:%M:%S")
    source = sqlite_rows(tmp_path, "2026-01-01 10:00:00", ahead)
    with pytest.raises(SourceError) as caught:
        list(source.read(""))
    assert caught.value.code == "source.clock_ahead"
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("update rows set at = '2026-01-01 10:00:01' where id = 2")
    connection.close()
    assert keys(list(source.read(""))) == ["1", "2"]


@pytest.mark.parametrize("mode", ["full_diff", "lag_window", "snapshot_cursor"])
@pytest.mark.parametrize("batch_rows", [1, 100])
def test_two_rows_of_one_key_stop_every_mode_before_either_arrives(
    mode: Any, batch_rows: int, postgres: Postgres
) -> None:
    with make_table(postgres, "twins") as connection:
        connection.execute("alter table twins add column part int, add column at int")
        said = {"full_diff": {}, "lag_window": {"cursor": "at"}}.get(mode)
        source = (
            by_transaction(postgres, "twins", batch_rows=batch_rows)
            if said is None
            else source_of(postgres, table="twins", mode=mode, batch_rows=batch_rows, **said)
        )
        if source.setup_sql:
            connection.execute(source.setup_sql)
        connection.execute(
            "alter table twins drop constraint twins_pkey, add primary key (id, part)"
        )
        connection.execute("insert into twins (id, part, at) values (1, 1, 1), (2, 1, 2)")
        batches = list(source.read(""))
        assert keys(batches) == ["1", "2"], "a key that the table does not hold, but the rows do"
        connection.execute("insert into twins (id, part, at) values (1, 2, 3)")
        for _poll in range(2):
            with pytest.raises(SourceError, match=r"two rows with id = 1") as caught:
                list(source.read(batches[-1].position))
            assert caught.value.code == "source.duplicate_key"
        connection.execute("delete from twins where id = 1 and part = 1")
        assert keys(list(source.read(batches[-1].position))) == ["1"]


def test_an_empty_key_stops_the_poll_as_a_missing_one_does(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("create table rows (id text primary key)")
        connection.execute("insert into rows values ('')")
    connection.close()
    config = SourceConfig(url="sqlite:///a.db", table="rows", key="id")
    with pytest.raises(SourceError) as caught:
        list(SqlPollSource(config, project="p", base=tmp_path, batch_rows=10).read(""))
    assert caught.value.code == "source.null_key"


@pytest.mark.parametrize("mode", ["full_diff", "lag_window", "snapshot_cursor"])
def test_a_table_of_another_schema_is_named_with_it(mode: Any, postgres: Postgres) -> None:
    with postgres.connect() as connection:
        connection.execute("drop schema if exists shop cascade")
        connection.execute("create schema shop")
        connection.execute("create table shop.items (id int primary key, at int)")
        cursor = {"lag_window": "at", "snapshot_cursor": "changed_in"}.get(mode, "")
        source = source_of(postgres, table="shop.items", mode=mode, cursor=cursor)
        if source.setup_sql:
            connection.execute(source.setup_sql)
        connection.execute("insert into shop.items (id, at) values (1, 1)")
        batches = list(source.read(""))
        connection.execute("insert into shop.items (id, at) values (2, 2)")
        assert keys([*batches, *source.read(batches[-1].position)]) == ["1", "2"]
        with pytest.raises(SourceError, match="Did you mean 'items'") as caught:
            list(source_of(postgres, table="shop.item").read(""))
    assert caught.value.code == "source.no_table"


STAMPS = {
    "text": lambda moment: moment.strftime("%Y-%m-%d %H:%M:%S.%f"),
    "text with a zone": lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "seconds": lambda moment: int(moment.timestamp()),
    "milliseconds": lambda moment: int(moment.timestamp() * 1000),
    "fractions": lambda moment: moment.timestamp(),
}


def stamped(folder: Path, *stamps: Any, lag: float = 0) -> SqlPollSource:
    with sqlite3.connect(folder / "s.db") as connection:
        connection.execute("create table if not exists rows (id integer primary key, at)")
        connection.executemany("insert into rows (at) values (?)", [(stamp,) for stamp in stamps])
    connection.close()
    config = SourceConfig(
        url="sqlite:///s.db", table="rows", key="id", cursor="at", lag_window=timedelta(seconds=lag)
    )
    return SqlPollSource(config, project="p", base=folder, batch_rows=10)


@pytest.mark.parametrize("form", STAMPS)
@pytest.mark.parametrize("lag", [0, 60])
def test_a_row_from_a_clock_some_hours_ahead_arrives_once_and_hides_none_behind_it(
    form: str, lag: float, tmp_path: Path
) -> None:
    now, write = datetime.now(UTC), STAMPS[form]
    source = stamped(tmp_path, write(now - timedelta(minutes=5)), lag=lag)
    stamped(tmp_path, write(now + timedelta(hours=3)))
    first = list(source.read(""))
    assert keys(first) == ["1", "2"]
    assert list(source.read(first[-1].position)) == []
    stamped(tmp_path, write(now + timedelta(minutes=1)))
    second = list(source.read(first[-1].position))
    assert keys(second) == ["3"]
    stamped(tmp_path, write(now + timedelta(seconds=30)))
    assert keys(list(source.read(second[-1].position))) == ["4"]


def test_a_first_row_ahead_of_the_clock_hides_none(tmp_path: Path) -> None:
    now = datetime.now(UTC).timestamp()
    source = stamped(tmp_path, int(now) + 10_000)
    position = list(source.read(""))[-1].position
    stamped(tmp_path, int(now) + 60)
    assert keys(list(source.read(position))) == ["2"]


def test_numbers_that_are_no_times_move_the_cursor_as_they_are(tmp_path: Path) -> None:
    for numbers in ([0, 5, 1 << 33], [1 << 61, (1 << 61) + 1], [0.5, 1e12]):
        folder = tmp_path / str(numbers[1])
        folder.mkdir()
        source = stamped(folder, *numbers)
        position = list(source.read(""))[-1].position
        stamped(folder, numbers[-1] - 1, numbers[-1] + 1)
        assert keys(list(source.read(position)))[-1:] == [str(len(numbers) + 2)]
        assert str(len(numbers) + 1) not in keys(list(source.read(position)))


@pytest.mark.parametrize("kind", ["numeric(20, 3)", "timestamptz", "timestamp", "date", "bytea"])
def test_every_type_of_cursor_goes_on_where_it_was(kind: str, postgres: Postgres) -> None:
    values = {"numeric(20, 3)": ["1.5", "2.25", "2.26"], "bytea": ["a", "b", "c"]}
    early, late, later = values.get(kind, ["2026-01-01", "2026-01-02", "2026-01-03"])
    with make_table(postgres, "typed") as connection:
        connection.execute(f"alter table typed add column at {kind}")
        insert = f"insert into typed (text, at) values ('x', %s::text::{kind})"
        for value in (early, late):
            connection.execute(insert, (value,))
        source = source_of(postgres, table="typed", cursor="at", lag_window=timedelta(seconds=1))
        position = list(source.read(""))[-1].position
        connection.execute(insert, (later,))
        assert keys(list(source.read(position))) == ["3"]


@pytest.mark.parametrize("value", ["'NaN'::numeric", "'Infinity'::float8", "interval '1 day'"])
def test_what_cannot_be_a_cursor_is_named(value: str, postgres: Postgres) -> None:
    with make_table(postgres, "odd_cursor") as connection:
        connection.execute("insert into odd_cursor (text) values ('x')")
        kind = value.partition("::")[2] or "interval"
        connection.execute(f"alter table odd_cursor add column at {kind}")
        connection.execute(f"update odd_cursor set at = {value}")
        with pytest.raises(SourceError) as caught:
            list(source_of(postgres, table="odd_cursor", cursor="at").read(""))
    assert caught.value.code == "source.bad_cursor"


@pytest.mark.parametrize("in_one_poll", [True, False])
@pytest.mark.parametrize(
    ("first", "other"), [(7, "2026-01-02"), ("b", 5), (b"a", "b"), (1.5, b"a")]
)
def test_a_cursor_of_several_types_has_no_order_and_is_named(
    tmp_path: Path, first: Any, other: Any, in_one_poll: bool
) -> None:
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("create table t (id integer primary key, at)")
        connection.execute("insert into t (at) values (?)", (first,))
    settings = SourceConfig(url="sqlite:///a.db", table="t", key="id", cursor="at")
    source = SqlPollSource(settings, project="p", base=tmp_path, batch_rows=100)
    position = "" if in_one_poll else next(source.read("")).position
    with connection:
        connection.execute("insert into t (at) values (?)", (other,))
    with pytest.raises(SourceError, match="at has values of several types") as caught:
        list(source.read(position))
    assert caught.value.code == "source.bad_cursor"
    with connection:
        connection.execute("update t set at = ? where id = 2", (first * 2,))
    assert keys(list(source.read(position)))[-1] == "2"
    connection.close()


@pytest.mark.parametrize("mode", ["snapshot_cursor", "lag_window"])
def test_a_mode_that_needs_a_cursor_says_so(mode: Any) -> None:
    with pytest.raises(ValueError, match="needs a cursor"):
        SourceConfig(url="sqlite:///a.db", table="t", key="id", mode=mode)


def test_every_mode_says_what_it_cannot_see() -> None:
    def promise(**said: Any) -> str:
        config = SourceConfig(url="sqlite:///a.db", table="t", key="id", **said)
        return SqlPollSource(config, project="p", base=Path(), batch_rows=1).promise

    assert "misses deletes" in promise(cursor="c", mode="snapshot_cursor")
    assert "misses deletes" in promise(cursor="c", mode="lag_window")
    assert "and deletes" in promise(cursor="c", mode="full_diff")


def test_a_row_without_a_part_of_its_key_stops_each_poll_by_transaction(postgres: Postgres) -> None:
    with postgres.connect() as connection:
        connection.execute("create table partless (shop text, id int, text text)")
        source = by_transaction(postgres, "partless", key=("shop", "id"), batch_rows=2)
        connection.execute(source.setup_sql)
        connection.execute("insert into partless values ('de', 1), ('de', 2), ('de', null)")
        batches = source.read("")
        position = next(batches).position
        for rest in (batches, source.read(position)):
            with pytest.raises(SourceError) as caught:
                next(rest)
            assert caught.value.code == "source.null_key"
        connection.execute("update partless set id = 3 where id is null")
        assert keys(list(source.read(position))) == ['["de","3"]']
