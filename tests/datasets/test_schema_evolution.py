"""Rows whose shape changes: the table follows where nothing is lost, else the row is refused alone."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent, OffsetRange, Partition
from autoglm.contracts.event_columns import EventColumns, columns_of, placed
from autoglm.datasets import feature_table
from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.errors import FencedError
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.consumer_group import Consumer
from autoglm.streaming.processor import RowProcessor

PARTITION = Partition(group="g", topic="t", number=0)


def table_of(folder: Path) -> DeltaFeatureTable:
    return DeltaFeatureTable(folder / "table", project="p", key="id", text="text", label="label")


def event(key: str, version: int, **row: Any) -> ChangeEvent:
    return ChangeEvent(
        project="p",
        source="s",
        key=key,
        op="upsert",
        version=version,
        row={"id": key, "text": "words", "label": "a", **row},
        committed_at=datetime.now(UTC),
        partition=0,
        offset=version,
    )


def commit(table: DeltaFeatureTable, *events: ChangeEvent, as_columns: bool = False) -> int:
    start = table.next_offset(PARTITION)
    rows: Any = events
    if as_columns:
        made = columns_of(events)
        assert made is not None
        offsets = range(start, start + len(events))
        rows = EventColumns(
            placed(made, partition=0, offsets=offsets, source="s", traceparent=""), project="p"
        )
    return table.commit(
        rows, [], {PARTITION: OffsetRange(start=start, end=start + len(events))},
        positions={"s": str(start)}, traceparent="",
    )  # fmt: skip


def column(table: DeltaFeatureTable, name: str) -> dict[str, Any]:
    stored = table.read()
    return dict(zip(stored["_key"].to_pylist(), stored[name].to_pylist(), strict=True))


@pytest.mark.parametrize("as_columns", [False, True])
def test_a_column_of_whole_numbers_becomes_one_of_numbers_and_old_versions_stay_readable(
    tmp_path: Path, as_columns: bool
) -> None:
    table = table_of(tmp_path)
    first = commit(table, event("k", 1, size=7), event("l", 2, size=None), as_columns=as_columns)
    settings = table.open().metadata().configuration
    commit(table, event("m", 3, size=2.5), as_columns=as_columns)
    commit(table, event("n", 4, size=9), as_columns=as_columns)
    assert column(table, "size") == {"k": 7.0, "l": None, "m": 2.5, "n": 9.0}
    assert table.read()["size"].type == pa.float64()
    assert table.read(first)["size"].to_pylist() == [7, None]
    assert table.num_dead() == 0
    assert [v.rows for v in table.versions()] == [1, 1, 2], "the rewriting brings no rows"
    made = table.open().metadata()
    assert (made.partition_columns, made.configuration) == (["_op"], settings)


def test_whole_numbers_that_would_lose_digits_are_not_widened(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    commit(table, event("k", 1, size=2**60 + 1))
    commit(table, event("l", 2, size=0.5), event("m", 3, size=4))
    assert column(table, "size") == {"k": 2**60 + 1, "m": 4}
    assert table.dead()["_code"].to_pylist() == ["data.schema_changed"]
    assert table.dead()["_key"].to_pylist() == ["l"]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"size": "large"}, "data.schema_changed"),
        ({"size": True}, "data.schema_changed"),
        ({"size": [1]}, "data.schema_changed"),
        ({"size": 2**70}, "data.schema_changed"),
        ({"share": 2**63 + 1}, "data.schema_changed"),
        ({"share": 10**400}, "data.schema_changed"),
        ({"is_new": 1}, "data.schema_changed"),
        ({"unseen": 2**64}, "data.schema_changed"),
        ({"_op": "dead"}, "data.reserved_column"),
        ({"Size": 1}, "data.duplicate_column"),
        ({"one": 1, "ONE": 2}, "data.duplicate_column"),
        ({"label": 3}, "data.mixed_labels"),
    ],
)
def test_a_row_that_the_table_cannot_hold_is_a_dead_letter_and_stops_nobody(
    tmp_path: Path, row: dict[str, Any], code: str
) -> None:
    table = table_of(tmp_path)
    commit(table, event("k", 1, size=1, share=0.5, is_new=True))
    commit(table, event("bad", 2, **row), event("good", 3, size=2))
    assert sorted(column(table, "size").items()) == [("good", 2), ("k", 1)]
    assert table.dead()["_code"].to_pylist() == [code]
    assert table.dead()["_key"].to_pylist() == ["bad"]
    assert table.next_offset(PARTITION) == 3


def test_the_way_from_the_broker_goes_on_behind_a_row_of_another_shape(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "b.db", partitions=1)
    epoch = broker.new_epoch("t", "s")
    rows = [
        {"size": 1},
        {"size": 0},
        {"size": "x"},
        {"size": 2**80},
        {"_key": 1},
        {"size": 2.5},
        {"size": 3},
    ]
    for number, row in enumerate(rows):
        batch = ChangeBatch(
            project="p", source="s", events=(event(str(number), number, **row),),
            position=str(number + 1), traceparent="",
        )  # fmt: skip
        broker.append("t", batch, producer="s", epoch=epoch)
    table = table_of(tmp_path)
    chain = RowProcessor(text="text", label="label", max_text_bytes=1_000)
    options: dict[str, Any] = {"project": "p", "group": "g", "topic": "t"}
    reader = Consumer(broker, table, chain, batch_rows=2, **options)
    done = reader.drain(threading.Event())
    assert (done.rows, done.dead) == (4, 3)
    broker.close()
    assert column(table, "size") == {"0": 1.0, "1": 0.0, "5": 2.5, "6": 3.0}
    assert sorted(table.dead()["_key"].to_pylist()) == ["2", "3", "4"]


def test_a_key_of_broken_utf8_is_a_dead_letter_for_a_delete_too(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "b.db", partitions=1)
    epoch = broker.new_epoch("t", "s")
    gone = replace(event("\ud800", 1), op="delete", row={})
    events = (gone, replace(event("x", 2), key="\udcff"), event("good", 3))
    batch = ChangeBatch(project="p", source="s", events=events, position="1", traceparent="")
    broker.append("t", batch, producer="s", epoch=epoch)
    table = table_of(tmp_path)
    chain = RowProcessor(text="text", label="label", max_text_bytes=1_000)
    options: dict[str, Any] = {"project": "p", "group": "g", "topic": "t", "batch_rows": 9}
    Consumer(broker, table, chain, **options).drain(threading.Event())
    broker.close()
    assert table.read()["_key"].to_pylist() == ["good"]
    assert table.dead()["_key"].to_pylist() == ["\\ud800", "\\udcff"]
    assert set(table.dead()["_code"].to_pylist()) == {"data.not_utf8"}


def test_widening_over_anothers_compaction_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(tmp_path)
    for number in range(4):
        commit(table, event(str(number), number, size=number))
    real = feature_table.write_deltalake

    def compacted_before(handle: DeltaTable, *arguments: Any, **options: Any) -> None:
        if options["mode"] == "overwrite":
            table.open().optimize.compact()
        real(handle, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(feature_table, "write_deltalake", compacted_before)
        with pytest.raises(FencedError):
            commit(table, event("w", 9, size=0.5))
    commit(table, event("w", 9, size=0.5))
    assert table.open().to_pyarrow_dataset().count_rows() == 5


def test_two_writers_widen_and_append_at_once_and_each_row_is_there_once(tmp_path: Path) -> None:
    table_of(tmp_path)._create()
    failed: list[BaseException] = []

    def write(number: int) -> None:
        table, partition = table_of(tmp_path), Partition(group="g", topic="t", number=number)
        try:
            for index in range(15):
                value = index + 0.5 if index == 7 else index
                row = event(f"{number}/{index}", index, size=value)
                while True:
                    start = table.next_offset(partition)
                    try:
                        table.commit(
                            [row], [], {partition: OffsetRange(start=start, end=start + 1)},
                            positions={}, traceparent="",
                        )  # fmt: skip
                        break
                    except FencedError:
                        continue
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    log = table_of(tmp_path).open().to_pyarrow_dataset().to_table()
    assert sorted(log["_key"].to_pylist()) == sorted(
        f"{n}/{i}" for n in range(3) for i in range(15)
    )
    assert log["size"].type == pa.float64()
