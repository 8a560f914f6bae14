"""Lag is told, a full broker holds the collector back, and another log than the table's is refused."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from autoglm.clock import SteeredClock
from autoglm.contracts.change_event import Partition
from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.errors import StorageError
from autoglm.loop.change_to_dataset import collect_changes, collect_once, open_broker
from autoglm.observability.metric_files import MetricFiles, write_metrics
from autoglm.project import Project
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.consumer_group import Committed, Consumer
from autoglm.streaming.figures import StreamFigures, backlog
from autoglm.streaming.processor import RowProcessor
from autoglm.testing.broker_suite import batch_of, change


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    with closing(SqliteBroker(tmp_path / "broker.db", partitions=2)) as made:
        yield made


def fill(broker: SqliteBroker, first: int, count: int) -> None:
    epoch = broker.new_epoch("t", "s")
    events = [
        change(f"k{i}", i, {"id": f"k{i}", "text": f"text {i}", "label": "a"})
        for i in range(first, first + count)
    ]
    broker.append("t", batch_of(events, str(first + count)), producer="s", epoch=epoch)


def consumer_of(folder: Path, broker: SqliteBroker, **more: object) -> Consumer:
    table = DeltaFeatureTable(folder / "table", project="p", key="id", text="text", label="label")
    processor = RowProcessor(text="text", label="label", max_text_bytes=1000)
    return Consumer(
        broker, table, processor, project="p", group="g", topic="t", batch_rows=8, **more  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_backlog_is_what_the_group_has_not_told_to_have(
    tmp_path: Path, broker: SqliteBroker
) -> None:
    fill(broker, 0, 20)
    assert backlog(broker, "g", "t") == 20
    consumer_of(tmp_path, broker).drain(threading.Event())
    assert backlog(broker, "g", "t") == 0
    fill(broker, 20, 5)
    assert backlog(broker, "g", "t") == 5


def test_lag_and_delay_are_told_per_partition_and_merged_over_workers(
    tmp_path: Path, broker: SqliteBroker
) -> None:
    clock = SteeredClock(datetime(2026, 1, 2, 3, 4, 7, 678901, tzinfo=UTC))
    figures = StreamFigures(broker, project="p", worker="0", clock=clock)
    seen: list[Committed] = []

    def committed(done: Committed) -> None:
        seen.append(done)
        figures.committed(done)

    fill(broker, 0, 20)
    consumer_of(tmp_path, broker, on_commit=committed).drain(threading.Event())
    assert sum(len(done.events) for done in seen) == 20
    assert set(figures.lag().values()) == {(0, 0.0)}
    fill(broker, 20, 5)
    clock.advance(3)
    assert sum(rows for rows, _ in figures.lag().values()) == 5
    assert max(seconds for _, seconds in figures.lag().values()) == 3
    write_metrics(tmp_path, "stream-0", figures.families())
    write_metrics(tmp_path, "stream-1", figures.families()[2:])
    registry = CollectorRegistry()
    registry.register(MetricFiles(tmp_path))
    text = generate_latest(registry).decode()
    labels = 'project="p",worker="0"'
    # 2 s lie between the commit at the source and that of the table.
    assert f'autoglm_stream_delay_seconds_bucket{{le="1",{labels}}} 0.0' in text
    assert f'autoglm_stream_delay_seconds_bucket{{le="2.5",{labels}}} 20.0' in text
    assert f"autoglm_stream_delay_seconds_sum{{{labels}}} 40.0" in text
    assert 'outcome="rows"' in text
    assert text.count("# TYPE autoglm_stream_events_total counter") == 1
    assert "autoglm_stream_lag_rows{" in text


def test_a_log_that_is_not_the_one_the_table_was_read_from_is_refused(
    tmp_path: Path, broker: SqliteBroker
) -> None:
    fill(broker, 0, 20)
    consumer_of(tmp_path, broker).drain(threading.Event())
    with closing(SqliteBroker(tmp_path / "another.db", partitions=2)) as other:
        fill(other, 0, 4)
        with pytest.raises(StorageError, match="not the log that the table was read from") as found:
            consumer_of(tmp_path, other).drain(threading.Event())
    assert found.value.code == "broker.offset_gone"


def test_a_log_that_was_deleted_is_not_filled_anew_behind_the_tables_back(
    tmp_path: Path,
) -> None:
    with sqlite3.connect(tmp_path / "app.db") as source:
        source.execute("create table rows (id integer primary key, text, label, at integer)")
        source.executemany(
            "insert into rows values (?, ?, 'a', ?)", [(n, f"text {n}", n) for n in range(30)]
        )
    (tmp_path / "autoglm.yaml").write_text(
        "project: p\nmodel: {backbone: conv}\ndata: {text: text, label: label, partitions: 2,"
        " source: {kind: sql, url: 'sqlite:///app.db', table: rows, key: id, cursor: at}}\n"
    )
    project = Project(tmp_path)
    assert collect_changes(project, threading.Event(), lambda _event: None).rows == 30
    for file in project.state.glob("broker.db*"):
        file.unlink()
    with sqlite3.connect(tmp_path / "app.db") as source:
        source.execute("update rows set text = 'changed', at = 99 where id = 3")
    for _attempt in range(2):
        with closing(open_broker(project)) as broker, pytest.raises(StorageError) as found:
            collect_once(project, broker, threading.Event(), lambda _event: None)
        assert found.value.code == "broker.offset_gone"


def test_nothing_is_taken_into_a_log_whose_file_was_deleted(
    tmp_path: Path, broker: SqliteBroker
) -> None:
    fill(broker, 0, 3)
    for file in tmp_path.glob("broker.db*"):
        file.unlink()
    with pytest.raises(StorageError) as found:
        fill(broker, 3, 3)
    assert found.value.code == "broker.replaced"
    with closing(SqliteBroker(tmp_path / "broker.db", partitions=2)), pytest.raises(StorageError):
        fill(broker, 3, 3)


def test_a_full_log_says_that_it_is_full_and_goes_on_when_there_is_room(
    tmp_path: Path, broker: SqliteBroker
) -> None:
    fill(broker, 0, 3)
    connection = broker._connection
    pages = connection.execute("pragma page_count").fetchone()[0]
    connection.execute(f"pragma max_page_count = {pages}")
    with pytest.raises(StorageError) as found:
        fill(broker, 3, 3_000)
    assert found.value.code == "storage.full"
    connection.execute("pragma max_page_count = 1000000")
    fill(broker, 3, 3_000)
    assert consumer_of(tmp_path, broker).drain(threading.Event()).rows == 3_003


def test_rows_that_are_large_together_are_stored_read_and_committed_in_parts(
    tmp_path: Path,
) -> None:
    rows = [
        change(f"k{i}", i, {"id": f"k{i}", "text": "words", "label": "a", "more": "x" * 20_000_000})
        for i in range(8)
    ]
    seen: list[Committed] = []
    with closing(SqliteBroker(tmp_path / "large.db", partitions=1)) as broker:
        epoch = broker.new_epoch("t", "s")
        for _twice in range(2):
            broker.append("t", batch_of(rows, "8"), producer="s", epoch=epoch)
        offset, sizes = 0, []
        while (found := broker.fetch("t", 0, offset, max_events=100)) is not None:
            offset, sizes = found.range.end, [*sizes, len(found.events)]
        consumer_of(tmp_path, broker, on_commit=seen.append).drain(threading.Event())
    assert sum(sizes) == offset == 8
    assert max(sizes) <= 2
    assert max(len(done.events) for done in seen) <= 4
    assert [e.key for done in seen for e in done.events] == [f"k{i}" for i in range(8)]


def test_a_partition_that_never_empties_does_not_keep_the_others_waiting(
    tmp_path: Path, broker: SqliteBroker
) -> None:
    fill(broker, 0, 60)
    turns: list[set[int]] = []

    def committed(done: Committed) -> None:
        turns.append({event.partition for event in done.events})

    consumer_of(tmp_path, broker, on_commit=committed).drain(threading.Event())
    assert {0, 1} == turns[0] | turns[1]


def test_a_member_shares_its_commits_until_it_is_cancelled_and_leaves_then(
    tmp_path: Path, broker: SqliteBroker
) -> None:
    cancel = threading.Event()
    beats: list[dict[Partition, int]] = []

    def committed(done: Committed) -> None:
        if sum(done.offsets.values()) == 20:
            cancel.set()

    fill(broker, 0, 20)
    consumer = consumer_of(tmp_path, broker, on_commit=committed, on_beat=beats.append)
    consumer.follow(cancel, member="m", lease=timedelta(seconds=30))
    taken = broker.join("g", "t", member="other", lease=timedelta(seconds=30))
    assert taken.partitions == (0, 1)


def project_of(folder: Path, **streaming: object) -> object:
    from autoglm.project import Project

    settings = {
        "project": "p",
        "model": {"backbone": "x"},
        "data": {
            "source": {"url": "sqlite:///source.db", "table": "rows", "key": "id"},
            "text": "text",
            "label": "label",
            "batch_rows": 10,
        },
        "streaming": streaming,
    }
    (folder / "autoglm.yaml").write_text(json.dumps(settings))
    return Project(folder)


def make_rows(folder: Path, count: int) -> None:
    import sqlite3

    with sqlite3.connect(folder / "source.db") as connection:
        connection.execute("create table rows (id integer primary key, text text, label text)")
        connection.executemany(
            "insert into rows values (?, ?, ?)",
            [(i, f"text {i}", "ab"[i % 2]) for i in range(count)],
        )
    connection.close()


def test_a_collector_without_processors_stops_reading_at_the_limit_and_drops_nothing(
    tmp_path: Path,
) -> None:
    from autoglm.loop.change_to_dataset import collect_once, hold_back, open_broker, open_consumer

    make_rows(tmp_path, 95)
    project = project_of(tmp_path, max_backlog=30)
    cancel, clock = threading.Event(), SteeredClock()
    with closing(open_broker(project)) as broker:  # type: ignore[arg-type]
        most = 0

        def hold(_events: int) -> None:
            """Nobody processes until the collector has waited for a minute of its clock."""
            nonlocal most
            most = max(most, backlog(broker, "feature-table", "changes"))
            waited = clock.monotonic()
            if most > 30 and clock.monotonic() < 60:
                gone = threading.Event()
                threading.Timer(0.05, gone.set).start()
                hold_back(project, broker, gone, clock)  # type: ignore[arg-type]
                assert clock.monotonic() > waited, "it waited"
            open_consumer(project, broker, cancel).drain(cancel)  # type: ignore[arg-type]

        assert collect_once(project, broker, cancel, lambda _e: None, on_batch=hold) == 95  # type: ignore[arg-type]
        assert most <= 40, "never more than one batch above the limit"
        open_consumer(project, broker, cancel).drain(cancel)  # type: ignore[arg-type]
    assert project.table().read().num_rows == 95  # type: ignore[attr-defined]
