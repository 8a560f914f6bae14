"""What is pushed over HTTP: durable before it is answered, once, in order; bad bodies by name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from autoglm.api.app import create_app
from autoglm.contracts.change_event import ChangeEvent
from autoglm.errors import SourceError
from autoglm.project import Project
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.collector import collect
from autoglm.streaming.collectors.push import PushSource
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.inbox import Inbox
from servers import until

PROJECT = """\
project: news
model: {backbone: conv}
data: {source: {kind: push, key: id}, text: body, label: topic}
"""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[TestClient]:
    (tmp_path / "autoglm.yaml").write_text(PROJECT)
    control: Any = SimpleNamespace(project=Project(tmp_path))
    with TestClient(create_app(control)) as client:
        yield client


def source(folder: Path, batch_rows: int = 100) -> PushSource:
    config = SourceConfig(kind="push", key="id")
    return PushSource(config, project="p", base=folder, batch_rows=batch_rows)


def read(folder: Path, position: str = "", **said: Any) -> list[ChangeEvent]:
    return [e for batch in source(folder, **said).read(position) for e in batch.events]


def push(api: TestClient, batch: str, *events: dict[str, Any]) -> Any:
    return api.post("/api/v1/events", json={"batch": batch, "events": list(events)})


def test_batches_arrive_once_and_in_order_whoever_sends_them_again(
    api: TestClient, tmp_path: Path
) -> None:
    first = push(api, "b1", {"row": {"id": 1, "body": "x"}}, {"op": "delete", "key": "7"})
    assert first.status_code == 202
    assert first.json() == {"batch": "b1", "events": 2, "position": 1, "known": False}
    assert push(api, "b2", {"key": 2, "row": {"body": "y", "tags": ["a"]}}).json()["position"] == 2
    again = push(api, "b1", {"row": {"id": 1, "body": "x"}}, {"op": "delete", "key": "7"})
    assert (again.json()["position"], again.json()["known"]) == (1, True)
    events = read(tmp_path)
    assert [(e.op, e.key) for e in events] == [("upsert", "1"), ("delete", "7"), ("upsert", "2")]
    assert events[2].row == {"id": 2, "body": "y", "tags": '["a"]'}
    assert [e.version for e in events] == sorted({e.version for e in events})


def test_what_is_collected_leaves_a_receipt_by_which_it_is_known(
    api: TestClient, tmp_path: Path
) -> None:
    push(api, "b1", {"key": "1", "row": {}})
    push(api, "b2", {"key": "2", "row": {}})
    broker = SqliteBroker(tmp_path / "b.db", partitions=1)
    for _attempt in range(2):
        collect(source(tmp_path), broker, topic="t", cancel=threading.Event())
    assert broker.end_offset("t", 0) == 2
    assert sum(path.stat().st_size for path in (tmp_path / "inbox").iterdir()) == 0
    assert push(api, "b1", {"key": "1", "row": {}}).json()["known"]
    assert push(api, "b3", {"key": "3", "row": {}}).json()["position"] == 3
    old = time.time() - 30 * 24 * 3600
    for path in (tmp_path / "inbox").glob("*.done"):
        os.utime(path, (old, old))
    collect(source(tmp_path), broker, topic="t", cancel=threading.Event())
    assert [path.name[:12] for path in (tmp_path / "inbox").iterdir()] == ["000000000003"]
    assert push(api, "b4", {"key": "4", "row": {}}).json()["position"] == 4
    broker.close()


def test_a_batch_larger_than_ours_goes_on_where_it_stopped(api: TestClient, tmp_path: Path) -> None:
    push(api, "big", *({"key": str(n), "row": {}} for n in range(10)))
    push(api, "next", {"key": "10", "row": {}})
    first = next(iter(source(tmp_path, batch_rows=4).read("")))
    assert [e.key for e in first.events] == ["0", "1", "2", "3"]
    source(tmp_path).acknowledge(first.position)
    rest = read(tmp_path, first.position, batch_rows=4)
    assert [e.key for e in rest] == [str(n) for n in range(4, 11)]


def test_an_event_without_a_name_is_a_dead_letter(api: TestClient, tmp_path: Path) -> None:
    push(api, "b1", {"row": {"body": "x"}}, {"key": "1", "row": {}})
    assert [(e.op, e.row.get("code")) for e in read(tmp_path)] == [
        ("dead", "source.null_key"), ("upsert", None),
    ]  # fmt: skip


def test_a_value_of_20_megabytes_passes(api: TestClient, tmp_path: Path) -> None:
    assert push(api, "b1", {"key": "1", "row": {"body": "x" * 20_000_000}}).status_code == 202
    assert len(read(tmp_path)[0].row["body"]) == 20_000_000


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ('{"batch": "b", "events": [', 400, "api.bad_json"),
        ('{"events": [{"key": "1"}]}', 422, "api.invalid"),
        ('{"batch": "", "events": [{"key": "1"}]}', 422, "api.invalid"),
        ('{"batch": "b", "events": []}', 422, "api.invalid"),
        ('{"batch": "b", "events": [{"key": "1", "op": "drop"}]}', 422, "api.invalid"),
        ('{"batch": "b", "events": [{"key": "1", "rows": {}}]}', 422, "api.invalid"),
        ('{"batch": "b", "events": [{"key": "1", "row": [1]}]}', 422, "api.invalid"),
        ('{"batch": "known", "events": [{"key": "2"}]}', 409, "push.batch_conflict"),
    ],
)
def test_a_bad_body_is_a_problem_and_leaves_nothing(
    body: str, status: int, code: str, api: TestClient, tmp_path: Path
) -> None:
    push(api, "known", {"key": "1"})
    answer = api.post("/api/v1/events", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert [event.key for event in read(tmp_path)] == ["1"]


def test_a_project_with_another_source_refuses(tmp_path: Path) -> None:
    said = PROJECT.replace("{kind: push, key: id}", "{url: 'sqlite:///a.db', table: t, key: id}")
    (tmp_path / "autoglm.yaml").write_text(said)
    control: Any = SimpleNamespace(project=Project(tmp_path))
    with TestClient(create_app(control)) as client:
        answer = push(client, "b", {"key": "1"})
    assert (answer.status_code, answer.json()["code"]) == (409, "source.not_push")


def test_a_full_inbox_asks_to_come_again(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoglm.streaming.inbox.MAX_WAITING_BYTES", 200)
    assert push(api, "b1", {"key": "1", "row": {"body": "x" * 100}}).status_code == 202
    answer = push(api, "b2", {"key": "2", "row": {"body": "x" * 100}})
    assert (answer.status_code, answer.json()["code"]) == (503, "push.inbox_full")


@pytest.mark.parametrize(("point", "survives"), [("before_rename", False), ("after_rename", True)])
def test_a_kill_while_a_batch_is_stored_leaves_all_of_it_or_nothing(
    point: str, survives: bool, tmp_path: Path
) -> None:
    command = [sys.executable, str(Path(__file__).with_name("push_child.py")), str(tmp_path / "inbox"), "b1"]  # fmt: skip
    arming = {"AUTOGLM_FAILPOINT": f"hop1.{point}:kill"}
    assert subprocess.run(command, env={**os.environ, **arming}, check=False).returncode == -9
    assert [event.key for event in read(tmp_path)] == ["b1"] * survives
    subprocess.run(command, check=True)  # the sender, who heard nothing, sends it again
    assert [event.key for event in read(tmp_path)] == ["b1"]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoglm import fail_points
    from autoglm.errors import StorageError

    fail_points.arm("hop1.before_rename:raise")
    try:
        with pytest.raises(StorageError) as caught:
            Inbox(tmp_path / "inbox").put("b1", [{"key": "1"}])
    finally:
        fail_points.arm("")
    assert caught.value.code == "storage.full"


def test_threads_that_push_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    def send(name: str) -> None:
        for index in range(10):
            Inbox(tmp_path / "inbox").put(f"{name}{index}", [{"key": f"{name}{index}"}])

    threads = [threading.Thread(target=send, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({event.key for event in read(tmp_path)}) == 30
    assert len({path.name[:12] for path in (tmp_path / "inbox").glob("*.json")}) == 30


def test_following_takes_what_comes_and_ends_when_cancelled(tmp_path: Path) -> None:
    broker, cancel = SqliteBroker(tmp_path / "b.db", partitions=1), threading.Event()
    thread = threading.Thread(
        target=collect, args=(source(tmp_path), broker),
        kwargs={"topic": "t", "cancel": cancel, "follow": True},
    )  # fmt: skip
    thread.start()
    try:
        for number in (1, 2):
            Inbox(tmp_path / "inbox").put(f"b{number}", [{"key": str(number)}])
            until(lambda number=number: broker.end_offset("t", 0) == number)  # type: ignore[misc]
    finally:
        cancel.set()
        thread.join(60)
    assert not thread.is_alive()
    broker.close()


def test_a_file_that_the_api_did_not_write_stops_by_name(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "000000000001.a.b.json").write_text("{")
    with pytest.raises(SourceError) as caught:
        read(tmp_path)
    assert caught.value.code == "source.bad_inbox"
