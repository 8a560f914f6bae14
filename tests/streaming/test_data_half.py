"""Source to feature table: each change exactly once, whoever dies; bad rows with a name."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent, OffsetRange, Partition
from autoglm.datasets.dataset_version import describe, load_rows
from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.datasets.splits import split_of
from autoglm.errors import AutoGLMError, DataError, FencedError, SourceError, StorageError
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.collectors.sql_poll import SqlPollSource
from autoglm.streaming.config import SourceConfig, SplitConfig
from autoglm.streaming.file_import import import_file, inspect_source, read_rows
from autoglm.streaming.processor import RowProcessor
from streaming.kill_child import trip

POINTS = [
    "hop2.before_commit",
    "hop2.after_commit",
    "hop4.before_commit",
    "hop4.after_commit",
    "hop5.before_hint",
]
SPLIT = {"validation": 0.1, "test": 0.1}


def make_source(folder: Path, count: int) -> sqlite3.Connection:
    connection = sqlite3.connect(folder / "source.db", isolation_level=None)
    connection.execute(
        "create table rows (id integer primary key, text text, label text, changed_at integer)"
    )
    connection.executemany(
        "insert into rows values (?, ?, ?, ?)",
        [(i, f"text {i}", "ab"[i % 2], i // 7) for i in range(count)],
    )
    return connection


def table_of(folder: Path) -> DeltaFeatureTable:
    return DeltaFeatureTable(folder / "table", project="p", key="id", text="text", label="label")


def stored(folder: Path) -> list[dict[str, Any]]:
    """What the Delta table holds, read by deltalake alone."""
    from deltalake import DeltaTable

    rows: list[dict[str, Any]] = DeltaTable(str(folder / "table")).to_pyarrow_table().to_pylist()
    return rows


def kill_often(folder: Path, cursor: str, *, wanted: int, seed: int) -> None:
    """Kill collect and drain at seeded fail points while rows are added; then compare."""
    draw, kills = random.Random(seed), 0
    connection = make_source(folder, 300)
    command = [sys.executable, str(Path(__file__).with_name("kill_child.py")), str(folder), cursor]
    while kills < wanted:
        for point in POINTS:
            environment = {**os.environ, "AUTOGLM_FAILPOINT": f"{point}:kill@{draw.randint(1, 3)}"}
            kills += subprocess.run(command, env=environment, check=False).returncode == -9
            last = connection.execute("select max(id), max(changed_at) from rows").fetchone()
            more = [(last[0] + i, "new", "a", last[1] + 1) for i in range(1, 121)]
            connection.executemany("insert into rows values (?, ?, ?, ?)", more)
    subprocess.run(command, check=True)
    expected = [row[0] for row in connection.execute("select id from rows order by id")]
    connection.close()
    assert sorted(row["id"] for row in stored(folder)) == expected
    print(f"{kills} kills, {len(expected)} rows: 0 lost, 0 doubled")


@pytest.mark.parametrize("cursor", ["changed_at", ""])
def test_kills_anywhere_neither_lose_nor_double_a_change(cursor: str, tmp_path: Path) -> None:
    kill_often(tmp_path, cursor, wanted=10, seed=7)


@pytest.mark.soak
@pytest.mark.parametrize("cursor", ["changed_at", ""])
def test_kills_by_the_hundred_neither_lose_nor_double_a_change(cursor: str, tmp_path: Path) -> None:
    kill_often(
        tmp_path,
        cursor,
        wanted=int(os.environ.get("KILLS", "100")),
        seed=int(os.environ.get("SEED", "0")),
    )


def test_an_update_and_in_full_diff_a_delete_arrive_once(tmp_path: Path) -> None:
    connection = make_source(tmp_path, 20)
    for cursor, sees_delete in (("changed_at", False), ("", True)):
        folder = tmp_path / (cursor or "diff")
        folder.mkdir()
        (folder / "source.db").symlink_to(tmp_path / "source.db")
        trip(folder, cursor)
        trip(folder, cursor)
        assert len(stored(folder)) == 20
        connection.execute("update rows set label = 'c', changed_at = 99 where id = 5")
        connection.execute("delete from rows where id = 7")
        trip(folder, cursor)
        latest = {row["id"]: row["label"] for row in table_of(folder).read().to_pylist()}
        assert latest[5] == "c"
        assert (7 not in latest) == sees_delete
        connection.execute("insert into rows values (7, 'text 7', 'b', 1)")
        connection.execute("update rows set label = 'b', changed_at = 0 where id = 5")
    connection.close()


def test_a_late_row_at_the_cursors_edge_is_not_missed(tmp_path: Path) -> None:
    connection = make_source(tmp_path, 10)
    trip(tmp_path, "changed_at")
    connection.execute("insert into rows values (50, 'same second', 'a', 1)")
    connection.close()
    trip(tmp_path, "changed_at")
    assert 50 in {row["id"] for row in stored(tmp_path)}


def read_all(folder: Path, **changes: str) -> list[ChangeBatch]:
    config = SourceConfig(**{"url": "sqlite:///source.db", "table": "rows", "key": "id", **changes})
    return list(SqlPollSource(config, project="p", base=folder, batch_rows=100).read(""))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"url": "sqlite:///gone.db"}, "source.missing"),
        ({"url": "no address"}, "source.bad_url"),
        ({"table": "row"}, "source.no_table"),
        ({"key": "idd"}, "source.no_column"),
        ({"cursor": "changed"}, "source.no_column"),
        ({"key": "label"}, "source.duplicate_key"),
    ],
)
def test_a_source_that_cannot_be_read_says_what_is_wrong(
    changes: dict[str, str], code: str, tmp_path: Path
) -> None:
    make_source(tmp_path, 5).close()
    with pytest.raises(SourceError) as caught:
        read_all(tmp_path, **changes)
    assert caught.value.code == code


def test_a_read_only_database_is_read(tmp_path: Path) -> None:
    make_source(tmp_path, 5).close()
    (tmp_path / "source.db").chmod(0o444)
    assert len(read_all(tmp_path)[0].events) == 5


def event(key: str, version: int, **row: Any) -> ChangeEvent:
    from datetime import UTC, datetime

    return ChangeEvent(
        project="p",
        source="s",
        key=key,
        op="upsert",
        version=version,
        row={"id": key, **row},
        committed_at=datetime.now(UTC),
        partition=0,
        offset=version,
    )


def test_position_and_events_are_one_transaction_and_an_old_producer_is_fenced(
    tmp_path: Path,
) -> None:
    broker = SqliteBroker(tmp_path / "b.db", partitions=2)
    epoch = broker.new_epoch("t", "s")
    batch = ChangeBatch(
        project="p",
        source="s",
        events=(event("k", 1, text="x", label="a"),),
        position="1",
        traceparent="",
    )
    broker.append("t", batch, producer="s", epoch=epoch)
    broker.append("t", batch, producer="s", epoch=epoch)
    assert broker.position("t", "s") == "1"
    assert sum(broker.end_offset("t", n) for n in range(2)) == 1
    broker.new_epoch("t", "s")
    with pytest.raises(FencedError):
        broker.append("t", batch, producer="s", epoch=epoch)
    broker.close()
    with pytest.raises(StorageError, match="2 partitions for life"):
        SqliteBroker(tmp_path / "b.db", partitions=3).num_partitions("t")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "data.empty_text"),
        ("  ", "data.empty_text"),
        (7, "data.not_text"),
        ("x" * 10_000_000, "data.text_too_long"),
        ("\udcff", "data.not_utf8"),
    ],
)
def test_what_cannot_be_learnt_from_becomes_a_dead_letter(text: Any, code: str) -> None:
    processor = RowProcessor(text="text", label="label", max_text_bytes=1_000_000)
    done = processor.process(
        [event("k", 1, text=text, label="a"), event("w", 2, text="fine", label=None)]
    )
    assert [d.code for d in done.dead] == [code]
    assert len(done.dead[0].raw) <= 65_536
    assert [e.key for e in done.rows] == ["w"], "a row without a label waits"


def commit(table: DeltaFeatureTable, *events: ChangeEvent, start: int = 0) -> int:
    offsets = {
        Partition(group="g", topic="t", number=0): OffsetRange(start=start, end=start + len(events))
    }
    return table.commit(
        events,
        [],
        offsets,
        positions={"s": "1"},
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )


def test_offsets_are_checked_and_nothing_is_committed_on_a_refusal(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    commit(table, event("k", 1, text="x", label="a"))
    with pytest.raises(FencedError):
        commit(table, event("k", 1, text="x", label="a"))
    assert len(stored(tmp_path)) == 1


def test_a_label_of_another_type_is_a_dead_letter_and_blocks_nothing(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    commit(table, event("k", 1, text="x", label="a"), event("l", 2, text="y", label=3))
    assert table.read()["_key"].to_pylist() == ["k"]
    assert table.dead()["_code"].to_pylist() == ["data.mixed_labels"]
    commit(table, event("m", 3, text="z", label=4), event("n", 4, text="z", label="b"), start=2)
    assert table.read()["_key"].to_pylist() == ["k", "n"]
    assert table.num_dead() == 2
    assert table.next_offset(Partition(group="g", topic="t", number=0)) >= 0


def learnable(count: int) -> list[ChangeEvent]:
    return [event(f"{i:04}", i, text=f"text {i}", label="ab"[i % 2]) for i in range(count)]


def test_a_dataset_version_names_what_waits_and_does_not_depend_on_commit_order(
    tmp_path: Path,
) -> None:
    extra = [event("r", 900, text="rare", label="z"), event("u", 901, text="no label", label=None)]
    forward, backward = table_of(tmp_path / "f"), table_of(tmp_path / "b")
    commit(forward, *learnable(120), *extra)
    commit(backward, *reversed([*learnable(120), *extra]))
    found = [describe(t, min_rows=2, split=SPLIT) for t in (forward, backward)]
    assert found[0].content_digest == found[1].content_digest
    assert (found[0].rows, found[0].labels, found[0].unlabelled_rows) == (120, ("a", "b"), 1)
    assert dict(found[0].rare_labels) == {"z": 1}
    assert sum(len(load_rows(found[0], name)) for name in ("train", "validation", "test")) == 120


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([event("k", 1, text="x", label=None)], "data.no_rows"),
        ([event(str(i), i, text=f"t{i}", label="a") for i in range(90)], "data.one_class"),
        ([event(str(i), i, text="same", label="ab"[i % 2]) for i in range(4)], "data.split_empty"),
    ],
)
def test_rows_that_cannot_teach_are_refused_by_name(
    events: list[ChangeEvent], code: str, tmp_path: Path
) -> None:
    table = table_of(tmp_path)
    commit(table, *events)
    with pytest.raises(DataError) as caught:
        describe(table, min_rows=2, split=SPLIT)
    assert caught.value.code == code


def test_equal_numbers_are_refused_as_numbers_not_as_classes(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    commit(table, *(event(str(i), i, text=f"t{i}", label="3") for i in range(90)))
    with pytest.raises(DataError, match="one number only: 3") as caught:
        describe(table, min_rows=2, split=SPLIT, task="regression")
    assert caught.value.code == "data.one_number"


def test_a_column_may_say_the_split_and_the_others_go_by_hash(tmp_path: Path) -> None:
    def row(number: int, part: str | None) -> ChangeEvent:
        return event(
            f"{number:04}", number, text=f"text {number}", label="ab"[number % 2], part=part
        )

    parts = ["Train", "test ", "validation", None]
    table, other = table_of(tmp_path / "one"), table_of(tmp_path / "two")
    commit(table, *(row(i, parts[i % 4]) for i in range(120)))
    found = describe(table, min_rows=2, split=SPLIT, split_column="part")
    by_hash = load_rows(describe(table, min_rows=2, split=SPLIT))
    for key, said in zip(load_rows(found).keys, load_rows(found).splits, strict=True):
        part = parts[int(key) % 4]
        expected = by_hash.splits[by_hash.keys.index(key)] if part is None else part.strip().lower()
        assert said == expected
    commit(other, *(row(i, parts[(i + 1) % 4]) for i in range(120)))
    moved = describe(other, min_rows=2, split=SPLIT, split_column="part")
    assert moved.content_digest != found.content_digest
    with pytest.raises(DataError, match="is said to be of the split 'text 0'"):
        describe(table, min_rows=2, split=SPLIT, split_column="text")
    commit(table, row(200, "dev"), start=120)
    for column, said in (
        ("part", "row 0200 is said to be of the split 'dev'"),
        ("none", "no column"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            describe(table, min_rows=2, split=SPLIT, split_column=column)
        assert caught.value.code == "data.wrong_split"


def test_copies_of_a_text_go_with_the_most_held_out_part_that_a_column_says_of_one(
    tmp_path: Path,
) -> None:
    def row(number: int, text: str, part: str | None) -> ChangeEvent:
        return event(f"{number:04}", number, text=text, label="ab"[number % 2], part=part)

    parts = ["train", "validation", "test", None]
    copies = [("Hello  there", "train"), ("hello there", "test"), ("HELLO there", None),
              ("bye", None), ("Bye", "train")]  # fmt: skip
    table = table_of(tmp_path)
    commit(table, *(row(i, f"text {i}", parts[i % 4]) for i in range(120)),
           *(row(200 + i, *copy) for i, copy in enumerate(copies)))  # fmt: skip
    found = load_rows(describe(table, min_rows=2, split=SPLIT, split_column="part"))
    by_key = dict(zip(found.keys, found.splits, strict=True))
    assert [by_key[f"{200 + i:04}"] for i in range(5)] == ["test"] * 3 + ["train"] * 2


BY_TIME = {
    "column": "at",
    "validation_from": "2025-01-01",
    "test_from": "2025-06-01T12:00:00+00:00",
}


def test_a_time_says_the_split_and_new_rows_move_no_old_one(tmp_path: Path) -> None:
    def row(number: int, at: Any, text: str = "") -> ChangeEvent:
        return event(
            str(number), number, text=text or f"text {number}", label="ab"[number % 2], at=at
        )

    table = table_of(tmp_path)
    commit(
        table,
        *(row(i, f"2024-0{1 + i % 9}-03") for i in range(20)),
        row(20, "2025-01-01"), row(21, "2025-06-01 11:59:59"),
        row(22, "2025-06-01 12:00:00"), row(23, "2026-01-01T00:00:00Z"), row(24, None),
        row(25, "2026-02-01", text="  TEXT 3 "),
    )  # fmt: skip
    found = load_rows(describe(table, min_rows=2, split=SPLIT, split_time=BY_TIME))
    splits = dict(zip(found.keys, found.splits, strict=True))
    assert [splits[str(n)] for n in range(20, 26)] == [
        "validation", "validation", "test", "test", "train", "train",
    ]  # fmt: skip
    assert {splits[str(n)] for n in range(20)} == {"train"}
    commit(table, *(row(i, "2026-03-01") for i in range(30, 40)), start=26)
    later = describe(table, min_rows=2, split=SPLIT, split_time=BY_TIME)
    grown = load_rows(later)
    now = dict(zip(grown.keys, grown.splits, strict=True))
    assert {key: now[key] for key in splits} == splits
    assert {now[str(n)] for n in range(30, 40)} == {"test"}
    moved = describe(
        table, min_rows=2, split=SPLIT, split_time={**BY_TIME, "test_from": "2026-02-15"}
    )
    assert moved.content_digest != later.content_digest
    with pytest.raises(DataError, match="'text 0' is no ISO date") as caught:
        describe(table, min_rows=2, split=SPLIT, split_time={**BY_TIME, "column": "text"})
    assert caught.value.code == "data.wrong_split"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"time": "at"}, "ISO dates"),
        ({"time": "at", "validation_from": "soon", "test_from": "2025-01-01"}, "ISO dates"),
        ({"time": "at", "validation_from": "2025-01-02", "test_from": "2025-01-01"}, "earlier"),
        ({"test_from": "2025-01-01"}, "need `time`"),
        ({"time": "at", "column": "part"}, "take one"),
    ],
)
def test_bounds_that_split_nothing_are_refused(said: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        SplitConfig(**said)


@settings(deadline=None, max_examples=50)
@given(st.text(min_size=1))
def test_the_same_words_never_straddle_a_split(text: str) -> None:
    assert split_of(text, validation=0.3, test=0.3) == split_of(
        f"  {text}\n", validation=0.3, test=0.3
    )


GOOD = '{"text": "one two", "label": "a"}\n{"text": "three", "label": "b"}\n{"text": "four", "label": "a"}\n{"text": "five", "label": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.jsonl", b'{"text": 1}\n{"te', "source.bad_json"),
        ("a.jsonl", b'{"text": "\xff"}\n', "source.not_utf8"),
        ("a.csv", b"text,label\na,b,c\n", "source.bad_csv"),
        ("a.xls", b"", "source.unknown_format"),
        ("a.csv", b"", "source.no_rows"),
        ("a.parquet", b"PAR", "source.unreadable"),
        ("a.jsonl.gz", b"no gzip", "source.unreadable"),
        ("a.csv", b"text,label\none,a\ntwo,a\nthree,a\n", "data.one_class"),
        (
            "a.jsonl",
            b'{"text": "x", "label": 1}\n{"text": "y", "label": "a"}\n',
            "data.mixed_labels",
        ),
        ("a.csv", b"text\nx y z\nu v w\n", "data.no_label"),
    ],
)
def test_a_bad_file_is_refused_and_leaves_nothing(
    name: str, content: bytes, code: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AutoGLMError) as caught:
        import_file(
            tmp_path / name, tmp_path / "new" / "data.db", "rows", text=None, label=None, key=None
        )
    assert caught.value.code == code
    assert not (tmp_path / "new").exists()


def test_a_missing_file_and_a_missing_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        list(read_rows(tmp_path / "gone.csv"))
    (tmp_path / "a.jsonl").write_text(GOOD)
    with pytest.raises(DataError, match="labl") as caught:
        import_file(
            tmp_path / "a.jsonl", tmp_path / "d.db", "rows", text=None, label="labl", key=None
        )
    assert "'label'" in caught.value.next_step


def test_an_imported_file_is_a_source_whose_cursor_grows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    columns, count = import_file(
        tmp_path / "a.jsonl", tmp_path / "source.db", "rows", text=None, label=None, key=None
    )
    assert (columns.text, columns.label, columns.key, columns.cursor, count) == (
        "text",
        "label",
        "id",
        "changed_at",
        4,
    )
    with sqlite3.connect(tmp_path / "source.db") as connection:
        connection.execute("update rows set label = 'c' where id = 2")
        connection.execute("insert into rows (text, label) values ('six', 'a')")
        assert connection.execute("select id, changed_at from rows order by id").fetchall() == [
            (1, 1),
            (2, 5),
            (3, 3),
            (4, 4),
            (5, 6),
        ]
    connection.close()
    found = inspect_source(
        "sqlite:///source.db",
        "rows",
        tmp_path,
        text=None,
        label=None,
        key=None,
        cursor="changed_at",
    )
    assert (found.key, found.text, found.label) == ("id", "text", "label")


def test_a_cancelled_collection_keeps_what_was_appended(tmp_path: Path) -> None:
    from autoglm.errors import CancelledError
    from autoglm.streaming.collector import collect

    make_source(tmp_path, 5).close()
    cancel = threading.Event()
    cancel.set()
    broker = SqliteBroker(tmp_path / "b.db", partitions=2)
    source = SqlPollSource(
        SourceConfig(url="sqlite:///source.db", table="rows", key="id"),
        project="p",
        base=tmp_path,
        batch_rows=2,
    )
    with pytest.raises(CancelledError):
        collect(source, broker, topic="t", cancel=cancel)
    assert broker.position("t", source.name) == ""
    broker.close()


def test_a_locked_database_is_named_and_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoglm.streaming.collectors.database.BUSY_SECONDS", 0)
    connection = make_source(tmp_path, 5)
    connection.execute("begin exclusive")
    with pytest.raises(SourceError) as caught:
        read_all(tmp_path)
    assert (caught.value.code, caught.value.retryable) == ("source.locked", True)
    connection.close()
