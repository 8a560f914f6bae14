"""The feature table on an S3-compatible store (moto's server): every promise of the folder's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from autoglm.contracts.change_event import OffsetRange, Partition
from autoglm.datasets.comparison import compare
from autoglm.datasets.dataset_version import describe, load_rows
from autoglm.datasets.erasure import collect_garbage, erase
from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.datasets.row_history import RowHistory
from autoglm.datasets.table_store import connect_table
from autoglm.errors import ConfigError, DataError, FencedError, StorageError
from feature_tables import PARTITION, TRACE, add, made, rows, table_at
from s3_server import KEYS, Store, running

CHILD = Path(__file__).with_name("store_child.py")
SPLIT = {"validation": 0.1, "test": 0.1}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    pytest.importorskip("moto")
    with running() as made_store:
        made_store.client().create_bucket(Bucket="bucket")
        yield made_store


@pytest.fixture
def address(store: Store, request: pytest.FixtureRequest) -> str:
    store.weather(lost=0, refused=0)
    found = f"s3://bucket/{re.sub(r'[^a-z0-9_]+', '-', request.node.name)}/table"
    connect_table(found, store.options)
    return found


@pytest.fixture
def table(address: str) -> DeltaFeatureTable:
    return table_at(address)


def plainly(address: str, store: Store) -> list[dict[str, Any]]:
    """The log, read by deltalake alone."""
    options = {f"aws_{k}": v for k, v in store.options.items()} | {"allow_http": "true"}
    found: list[dict[str, Any]] = (
        DeltaTable(address, storage_options=options).to_pyarrow_table().to_pylist()
    )
    return found


def child(address: str, store: Store, commits: int, topic: str, point: str = "") -> Any:
    environment = {**os.environ, "AUTOGLM_FAILPOINT": point, "PYTHONPATH": str(CHILD.parents[1])}
    command = [sys.executable, str(CHILD), address, store.url, str(commits), topic]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_version_is_read_as_it_was_and_by_its_address_alone(
    table: DeltaFeatureTable, address: str
) -> None:
    assert table.version == -1
    first = add(table, *rows(*range(60)))
    second = add(table, *rows(1, text_is="new"), {"id": 2, "text": "other", "label": "a"})
    assert (table.version, table_at(address).version) == (second, second)
    dataset = describe(table, first, min_rows=2, split=SPLIT)
    assert (dataset.uri, dataset.rows) == (address, 60)
    assert load_rows(dataset).inputs[0] == "text 0"
    found = compare(table, first, second)
    assert (found.added, found.changed) == ((), ("2",))
    changes = RowHistory(table=table_at(address), group="g", topic="t").of("2")
    assert [change.table_version for change in changes] == [first, second]
    with pytest.raises(DataError, match="no_such_version"):
        table.read(second + 1)


def test_the_newest_version_is_seen_without_reading_the_log_again(
    table: DeltaFeatureTable, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(table, *rows(1))
    assert table.version == 1
    opened = []
    monkeypatch.setattr(table.store, "_opened", lambda *_a, **_k: opened.append(1))
    add(table_at(address), *rows(2))
    assert table.version == 2
    assert opened == [], "the log is followed, not opened"


def test_a_stale_writer_of_a_partition_is_refused_and_nothing_of_it_is_stored(
    table: DeltaFeatureTable, address: str, store: Store
) -> None:
    add(table, *rows(1))
    zombie = table_at(address)
    assert zombie.next_offset(PARTITION) == 1  # it has seen the table, then it slept
    add(table, *rows(2))
    with pytest.raises(FencedError):
        zombie.commit(
            [made("9", 1, id=9, text="zombie", label="a")],
            [],
            {PARTITION: OffsetRange(start=1, end=2)},
            positions={},
            traceparent=TRACE,
        )
    assert sorted(row["_key"] for row in plainly(address, store)) == ["1", "2"]
    assert zombie.next_offset(PARTITION) == 2


def test_two_writers_at_once_lose_and_double_nothing(address: str, store: Store) -> None:
    """Of one partition (they fence each other) and of another (all pass)."""
    add(table_at(address), *rows(1))
    children = [child(address, store, 8, topic) for topic in ("same", "same", "own")]
    for each in children:
        each.communicate(timeout=300)
    assert [each.returncode for each in children] == [0, 0, 0]
    keys = [row["_key"] for row in plainly(address, store)]
    assert len(keys) == len(set(keys)) == 1 + 2 * 80


@pytest.mark.parametrize("point", ["hop4.before_commit", "hop4.after_commit"])
def test_killed_around_a_commit_each_row_is_there_once(
    address: str, store: Store, point: str
) -> None:
    for nth in (1, 3):
        killed = child(address, store, 6, "t", f"{point}:kill@{nth}")
        killed.communicate(timeout=300)
        assert killed.returncode == -9
    last = child(address, store, 6, "t")
    last.communicate(timeout=300)
    assert last.returncode == 0
    keys = sorted(row["_key"] for row in plainly(address, store))
    assert keys == sorted(f"t-{n}" for n in range(60))


def test_a_commit_whose_answer_was_lost_is_not_made_again(
    table: DeltaFeatureTable, address: str, store: Store
) -> None:
    """The store took it and said 500: whoever asks for the offset then learns so."""
    add(table, *rows(1))
    store.weather(lost=1)
    try:
        add(table, *rows(2))
    except StorageError:
        assert table.next_offset(PARTITION) == 2
    with pytest.raises(FencedError):
        add(table, *rows(2), start=1)
    add(table, *rows(3))
    assert sorted(row["_key"] for row in plainly(address, store)) == ["1", "2", "3"]


def test_every_commit_is_a_conditional_put_whatever_the_environment_says(
    table: DeltaFeatureTable, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else of two writers of one version the later would overwrite the earlier."""
    monkeypatch.setenv("AWS_S3_ALLOW_UNSAFE_RENAME", "true")
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    before = store.commits()
    for number in range(3):
        add(table, *rows(number))
    after = store.commits()
    assert after["conditional"] - before["conditional"] == 4  # one makes the table
    assert after["blind"] == 0


def test_an_erased_row_leaves_the_store_with_the_garbage_and_pins_hold_the_rest(
    table: DeltaFeatureTable, address: str, store: Store
) -> None:
    add(table, {"id": 7, "text": "forgettable words", "label": "a"}, *rows(1))
    done = erase(table, "7")
    assert done.changes == 1
    held = add(table, *rows(2))
    table.pin(held, "run 1")
    table_at(address).pin(held, "run/2 ü")
    table.pin(held, "run 1")
    add(table, *rows(3))
    table._compact()
    planned = collect_garbage(table, [], is_dry_run=True)
    assert planned
    assert table.store.num_bytes(planned) > 0
    assert collect_garbage(table, []) == planned
    assert table_at(address).read(held)["_key"].to_pylist() == ["1", "2"]
    assert table.read()["_key"].to_pylist() == ["1", "2", "3"]
    assert table_at(address).pins() == {held: ["run 1", "run/2 ü"]}
    table.unpin("run 1")
    assert table.pins() == {held: ["run/2 ü"]}
    client, prefix = store.client(), address.removeprefix("s3://bucket/")
    for name in store.names(prefix):
        body = client.get_object(Bucket="bucket", Key=name)["Body"].read()
        assert b"forgettable" not in body, name
    with pytest.raises(DataError, match="version_gone"):
        table_at(address).read(done.version - 1)


def test_a_store_that_is_gone_is_a_named_error_and_all_goes_on_when_it_is_back() -> None:
    pytest.importorskip("moto")
    address = "s3://bucket/gone/table"
    with running() as first:
        first.client().create_bucket(Bucket="bucket")
        connect_table(address, {**first.options, "max_retries": "1", "retry_timeout": "1s"})
        table = table_at(address)
        add(table, *rows(1))
    port = int(first.url.rpartition(":")[2])
    for attempt in (
        lambda: table.version,
        lambda: table.next_offset(PARTITION),
        lambda: add(table, *rows(2), start=1),
        lambda: table_at(address).read(),
        lambda: table.pins(),
    ):
        with pytest.raises(StorageError) as caught:
            attempt()
        assert (caught.value.code, caught.value.retryable) == ("storage.unreachable", True)
        assert KEYS["secret_access_key"] not in str(caught.value)
    with running(port) as second:  # empty: moto keeps nothing
        second.client().create_bucket(Bucket="bucket")
        assert table_at(address).version == -1
        add(table_at(address), *rows(1))
        assert table_at(address).read().num_rows == 1


def test_wrong_keys_are_not_tried_again_and_are_not_told(
    table: DeltaFeatureTable, store: Store
) -> None:
    store.weather(refused=1)
    with pytest.raises(StorageError) as caught:
        table.next_offset(Partition(group="g", topic="t", number=1))
    assert (caught.value.code, caught.value.retryable) == ("storage.refused", False)
    assert KEYS["access_key_id"] not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "options", "words"),
    [
        ("s3://bucket", {}, "s3://BUCKET/PREFIX"),
        ("ftp://bucket/x", {}, "s3://BUCKET/PREFIX"),
        ("s3://bucket/a[b]", {}, "s3://BUCKET/PREFIX"),
        ("s3://bucket/a b", {}, "s3://BUCKET/PREFIX"),
        ("s3://bucket/a?b=1", {}, "s3://BUCKET/PREFIX"),
        ("s3://key:secret-word@bucket/x", {}, "s3://BUCKET/PREFIX"),
        ("s3://bucket/x", {"secret_acess_key": "s"}, "Did you mean secret_access_key"),
        ("s3://bucket/x", {"s3_allow_unsafe_rename": "true"}, "no option"),
    ],
)
def test_a_wrong_address_or_option_is_told_before_anything_is_asked(
    address: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        connect_table(address, options)
    assert "secret-word" not in str(caught.value)
