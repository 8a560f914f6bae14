"""What a source gives is newer than what the table has of it, whatever the source was called."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from autoglm.loop.change_to_dataset import (
    collect_changes,
    collect_once,
    open_broker,
    waiting_events,
)
from autoglm.processes.stream import collect_forever
from autoglm.project import Project
from autoglm.streaming.version_floor import RaisedPosition
from s3_server import KEYS, running
from servers import free_port, until

TABLE = "{{kind: sql, url: 'sqlite:///a.db', table: {}, key: id{}}}"
FOLDER = "{kind: folder, path: in, key: id}"


class Place:
    """A table, and a folder beside it, of one project whose source is named anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.connection = sqlite3.connect(folder / "a.db", isolation_level=None)
        self.execute("create table rows (id text primary key, text text, label text, at integer)")
        (folder / "in").mkdir()

    def execute(self, *said: Any) -> None:
        self.connection.execute(*said)

    def project(self, source: str, more: str = "") -> Project:
        (self.folder / "autoglm.yaml").write_text(
            f"project: p\nmodel: {{backbone: conv}}\n{more}\n"
            f"data: {{source: {source}, text: text, label: label, poll_interval: 100ms}}\n"
        )
        return Project(self.folder)


@pytest.fixture
def place(tmp_path: Path) -> Any:
    with closing((made := Place(tmp_path)).connection):
        yield made


def trip(project: Project) -> dict[str, str]:
    """Key → text, after one trip to the source."""
    collect_changes(project, threading.Event(), lambda _event: None)
    rows = project.table().read(columns=["_key", "text"]).to_pylist()
    return {row["_key"]: row["text"] for row in rows}


@pytest.mark.parametrize("cursor", [", cursor: at", ""])
def test_rows_of_a_renamed_table_go_on_and_go_back(cursor: str, place: Place) -> None:
    first = place.project(TABLE.format("rows", cursor))
    for number in range(5):
        place.execute("insert or replace into rows values ('a', ?, 'x', ?)", (number, number))
        assert trip(first) == {"a": str(number)}
    place.execute("alter table rows rename to articles")
    second = place.project(TABLE.format("articles", cursor))
    place.execute("update articles set text = 'renamed', at = 10")
    assert trip(second) == {"a": "renamed"}
    place.execute("update articles set text = 'later', at = 11")
    assert trip(second) == {"a": "later"}
    # The first name's position is still there, and counts below what came under the second.
    place.execute("alter table articles rename to rows")
    place.execute("update rows set text = 'back', at = 12")
    assert trip(place.project(TABLE.format("rows", cursor))) == {"a": "back"}


def test_rows_of_another_topic_and_of_another_kind_of_source_are_newer(place: Place) -> None:
    polled = TABLE.format("rows", "")
    for number in range(5):
        place.execute("insert or replace into rows values ('a', ?, 'x', ?)", (number, number))
        trip(place.project(polled))
    place.execute("update rows set text = 'in the new topic'")
    topic = "streaming: {broker: {kind: sqlite, topic: other}}"
    assert trip(place.project(polled, topic)) == {"a": "in the new topic"}
    (place.folder / "in" / "a.csv").write_text("id,text,label\na,from a file,x\n")
    assert trip(place.project(FOLDER, topic)) == {"a": "from a file"}
    (place.folder / "in" / "a.csv").write_text("id,text,label\na,and changed,x\n")
    assert trip(place.project(FOLDER, topic)) == {"a": "and changed"}
    place.execute("update rows set text = 'polled again'")
    assert trip(place.project(polled, topic)) == {"a": "polled again"}


def test_what_waits_in_the_broker_counts_as_what_is_in_the_table(place: Place) -> None:
    first = place.project(TABLE.format("rows", ""))
    for number in range(5):
        place.execute("insert or replace into rows values ('a', ?, 'x', 1)", (number,))
        with closing(open_broker(first)) as broker:
            collect_once(first, broker, threading.Event(), lambda _event: None)
    place.execute("alter table rows rename to articles")
    place.execute("update articles set text = 'newest'")
    second = place.project(TABLE.format("articles", ""))
    with closing(open_broker(second)) as broker:
        collect_once(second, broker, threading.Event(), lambda _event: None)
    assert trip(second) == {"a": "newest"}


def test_a_source_that_stays_keeps_its_versions(place: Place) -> None:
    project = place.project(TABLE.format("rows", ""))
    for number in range(3):
        place.execute("insert or replace into rows values ('a', ?, 'x', 1)", (number,))
        trip(project)
    versions = project.table().changes_of(["a"])["_version"].to_pylist()
    assert sorted(versions) == [1 << 32, 2 << 32, 3 << 32]
    assert project.table().newest_version() == 3 << 32


def test_a_position_of_an_older_release_is_read(place: Place) -> None:
    for text in ("", "17:3", '{"lsn": 4}', "eJyrVkpUslIyVNJRSlKyUqoFACWYBEE="):
        assert RaisedPosition.read(text) == RaisedPosition(position=text)
        known = RaisedPosition(base=5, newest=9, position=text)
        assert RaisedPosition.read(known.write()) == known


def test_a_collector_waits_by_name_for_the_table_s_store_and_then_runs_without_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moto")
    monkeypatch.setattr("autoglm.processes.again.MAX_BACK_OFF_SECONDS", 0.1)
    port = free_port()
    store = {
        "allow_http": "true", "max_retries": "0", "endpoint_url": f"http://127.0.0.1:{port}", **KEYS
    }  # fmt: skip
    section = {"storage": {"table": "s3://bucket/p/table", "options": store}}
    project = place.project(TABLE.format("rows", ""), json.dumps(section)[1:-1])
    cancel = threading.Event()

    def waiting() -> int:
        with closing(open_broker(project)) as broker:
            return waiting_events(project, broker)

    place.execute("insert into rows values ('a', 'x', 'x', 1)")
    collector = threading.Thread(target=collect_forever, args=(project, cancel))
    try:
        with capture_logs() as lines:
            collector.start()
            until(lambda: any("waits for the feature table" in line["event"] for line in lines))
        assert {x["error_code"] for x in lines if "error_code" in x} == {"storage.unreachable"}
        assert waiting() == 0, "nobody can tell yet whether the log is the table's"
        with running(port) as back:
            back.client().create_bucket(Bucket="bucket")
            until(lambda: waiting() == 1)
        place.execute("insert into rows values ('b', 'x', 'x', 1)")
        until(lambda: waiting() == 2)
    finally:
        cancel.set()
        collector.join(60)
    assert not collector.is_alive()
