"""The Kafka driver does what every broker must, on brokers that speak the protocol."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import KafkaException

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent
from autoglm.errors import ConfigError, StorageError
from autoglm.integrations.kafka import KafkaBroker
from autoglm.integrations.kafka_lanes import MAX_WAITING_BYTES
from autoglm.plugins.kinds import Broker
from autoglm.streaming.config import BrokerConfig
from autoglm.streaming.processor import ProcessorChain, RowProcessor
from autoglm.testing.broker_suite import BrokerSuite, Connect
from integrations.kafka_servers import noida, tansu

CHECKS: dict[str, subprocess.Popen[str]] = {}


@contextmanager
def check_under_way(address: str) -> Iterator[None]:
    """`streaming check` has its own topics and mostly waits: it goes on beside the other tests."""
    command = [sys.executable, "-m", "autoglm.cli", "streaming", "check", address, "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    CHECKS[address] = subprocess.Popen(command, **pipes, text=True)
    try:
        yield
    finally:
        CHECKS[address].kill()
        CHECKS.pop(address).communicate()


@pytest.fixture(scope="module")
def noida_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with noida(tmp_path_factory.mktemp("noida")) as address, check_under_way(address):
        yield address


@pytest.fixture(scope="module")
def tansu_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tansu(tmp_path_factory.mktemp("tansu")) as address, check_under_way(address):
        yield address


def _connecting(
    address: str, project: str, *, partitions: int, seconds: float = 1
) -> Callable[[], KafkaBroker]:
    """`seconds`: after which the cluster ends the transaction of a producer that died."""
    options = {"transaction.timeout.ms": int(seconds * 1000)}
    config = BrokerConfig(kind="kafka", bootstrap=address, options=options)
    return lambda: KafkaBroker(config, project=project, partitions=partitions, patience=5)


def batch_of(position: str, *rows: Mapping[str, Any]) -> ChangeBatch:
    """One event per row (of one row, if none is said), at `position`."""
    events = [
        ChangeEvent(
            project="p",
            source="s",
            key=str(row["id"]),
            op="upsert",
            version=1,
            row=row,
            committed_at=datetime.now(UTC),
        )
        for row in rows or ({"id": 1, "text": "one"},)
    ]
    return ChangeBatch(
        project="p",
        source="s",
        events=tuple(events),
        position=position,
        traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
    )


class KafkaSuite(BrokerSuite):
    lease = long_lease = timedelta(seconds=6)  # the least that brokers allow, and rebalances wait
    address = ""

    def with_partitions(self, partitions: int) -> Broker:
        config = BrokerConfig(kind="kafka", bootstrap=self.address)
        return KafkaBroker(config, project="suite", partitions=partitions)


class TestOnNoida(KafkaSuite):
    takes_over = False

    @pytest.fixture
    def connect(self, noida_address: str) -> Connect:
        self.address = noida_address
        return lambda: self.with_partitions(4)


class TestOnTansu(KafkaSuite):
    fences_producers = False

    @pytest.fixture
    def connect(self, tansu_address: str) -> Connect:
        self.address = tansu_address
        return lambda: self.with_partitions(4)


def test_a_cluster_without_an_address_and_one_that_is_not_there_are_named() -> None:
    with pytest.raises(ConfigError, match="bootstrap is missing"):
        KafkaBroker(BrokerConfig(kind="kafka"), project="p", partitions=1)
    config = BrokerConfig(kind="kafka", bootstrap="127.0.0.1:1")
    with closing(KafkaBroker(config, project="p", partitions=1, patience=2)) as broker:
        with pytest.raises(StorageError) as caught:
            broker.num_partitions("t")
        assert (caught.value.code, caught.value.retryable) == ("broker.unreachable", True)


@pytest.mark.parametrize(
    ("server", "cannot", "promise"),
    [
        ("noida_address", {"takeover"}, "Exactly once from the source to the feature table"),
        ("tansu_address", {"transactions"}, "changes may be in the table twice"),
    ],
)
def test_the_check_says_what_a_cluster_cannot_do_and_what_may_be_promised(
    server: str, cannot: set[str], promise: str, request: pytest.FixtureRequest
) -> None:
    check = CHECKS[request.getfixturevalue(server)]
    stdout, stderr = check.communicate(timeout=600)
    assert check.returncode == 1, stdout + stderr
    found = json.loads(stdout)
    assert {f["name"] for f in found["findings"] if not f["is_so"]} == cannot
    assert promise in " ".join(found["promises"])


def test_a_collector_that_was_fenced_between_two_sends_is_told_so_and_closes(
    noida_address: str,
) -> None:
    config = BrokerConfig(kind="kafka", bootstrap=noida_address)
    old = KafkaBroker(config, project="fenced", partitions=1)
    old.new_epoch("t", "collector")
    producer = old._producers["t", "collector"].producer
    producer.begin_transaction()
    with closing(KafkaBroker(config, project="fenced", partitions=1)) as new:
        new.new_epoch("t", "collector")
        producer.produce("t", b"{}", b"k")
        deadline = time.monotonic() + 30
        with suppress(KafkaException):
            while time.monotonic() < deadline:  # its background thread finds out
                producer.produce("t", b"{}", b"k")
                time.sleep(0.01)
        assert time.monotonic() < deadline
        old.close()


@pytest.mark.parametrize("server", ["noida_address", "tansu_address"])
def test_what_another_producer_left_open_hides_no_position(
    server: str, request: pytest.FixtureRequest
) -> None:
    connect = _connecting(request.getfixturevalue(server), "hidden", partitions=1)
    with closing(connect()) as broker, closing(connect()) as other, closing(connect()) as new:
        epoch = broker.new_epoch("h", "collector")
        broker.append("h", batch_of("one"), producer="collector", epoch=epoch)
        other.new_epoch("h", "dead-letters")
        left_open = other._producers["h", "dead-letters"].producer
        left_open.begin_transaction()  # as of one that was killed before its commit
        left_open.produce("h.positions", b"1", b"dead-letters")
        left_open.flush(30)
        broker.append("h", batch_of("two"), producer="collector", epoch=epoch)
        with pytest.raises(StorageError) as caught:
            new.new_epoch("h", "collector")
        assert (caught.value.code, caught.value.retryable) == ("broker.transaction_open", True)
        left_open.abort_transaction(30)
        new.new_epoch("h", "collector")
        assert new.position("h", "collector") == "two"


@pytest.mark.parametrize("server", ["noida_address", "tansu_address"])
def test_a_position_is_read_when_the_transaction_that_hid_it_ends(
    server: str, request: pytest.FixtureRequest
) -> None:
    connect = _connecting(request.getfixturevalue(server), "ends", partitions=1, seconds=60)
    with closing(connect()) as broker, closing(connect()) as other, closing(connect()) as new:
        epoch = broker.new_epoch("e", "collector")
        other.new_epoch("e", "dead-letters")
        left_open = other._producers["e", "dead-letters"].producer
        left_open.begin_transaction()
        left_open.produce("e.positions", b"1", b"dead-letters")
        left_open.flush(30)
        broker.append("e", batch_of("one"), producer="collector", epoch=epoch)
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.append(new.position("e", "collector")))
        asking.start()
        asking.join(1)
        assert (asking.is_alive(), found) == (True, [])
        left_open.abort_transaction(30)
        asking.join(60)
        assert found == ["one"]


def test_a_backlog_of_large_values_waits_at_the_broker_while_another_partition_is_read(
    tansu_address: str,
) -> None:
    connect = _connecting(tansu_address, "large", partitions=2)
    value = "z" * 500_000
    with closing(connect()) as broker:
        epoch = broker.new_epoch("l", "collector")
        for number in range(16):  # 128 MB under one key, so in one partition
            rows = [{"id": 1, "text": value}] * 16
            broker.append("l", batch_of(f"{number}", *rows), producer="collector", epoch=epoch)
    with closing(connect()) as reader:
        ends = [reader.end_offset("l", number) for number in (0, 1)]
        full, idle = (0, 1) if ends[0] else (1, 0)
        assert reader.fetch("l", full, 0, max_events=1) is not None
        for _ in range(20):
            assert reader.fetch("l", idle, 0, max_events=1) is None
        waiting = reader._lanes()._lanes["l", full].num_bytes
        assert waiting < 3 * MAX_WAITING_BYTES
        offset, count = 1, 1
        while (fetched := reader.fetch("l", full, offset, max_events=7)) is not None:
            offset, count = fetched.range.end, count + len(fetched.events)
        assert count == 256
        assert reader._lanes()._lanes["l", full].num_bytes == 0


@pytest.mark.parametrize("server", ["noida_address", "tansu_address"])
def test_a_row_above_what_the_topic_takes_is_a_dead_letter_and_stops_nothing(
    server: str, request: pytest.FixtureRequest
) -> None:
    connect = _connecting(request.getfixturevalue(server), "above", partitions=1)
    rows = [{"id": 1, "text": "one"}, {"id": 2, "text": "y" * 20_000_000}, {"id": 3, "text": "x"}]
    with closing(connect()) as broker:
        epoch = broker.new_epoch("a", "collector")
        broker.append("a", batch_of("one", *rows), producer="collector", epoch=epoch)
        broker.append("a", batch_of("two", rows[0]), producer="collector", epoch=epoch)
        fetched = broker.fetch("a", 0, 0, max_events=10)
        assert fetched is not None
        events = list(fetched.events)
        if len(events) < 4 and (more := broker.fetch("a", 0, fetched.range.end, max_events=10)):
            events += more.events
    assert [(e.key, e.op) for e in events] == [
        ("1", "upsert"), ("2", "dead"), ("3", "upsert"), ("1", "upsert"),
    ]  # fmt: skip
    processor = RowProcessor(text="text", label="label", max_text_bytes=1000)
    (letter,) = ProcessorChain([processor]).process(events[1:2]).dead
    assert (letter.key, letter.code) == ("2", "data.row_too_large")
    assert "20,000,000" in letter.cause
    assert letter.raw.startswith('{"id": 2, "text": "yyy')


def test_a_batch_that_cannot_be_sent_leaves_no_transaction_open(noida_address: str) -> None:
    connect = _connecting(noida_address, "unsent", partitions=1)
    with closing(connect()) as broker:
        epoch = broker.new_epoch("u", "collector")
        with pytest.raises(StorageError) as caught:
            broker.append("u", batch_of("p" * 20_000_000), producer="collector", epoch=epoch)
        assert caught.value.code == "broker.too_large"
        assert "the position of collector" in caught.value.message
        with pytest.raises(TypeError):
            broker.append("u", batch_of("x", {"id": object()}), producer="collector", epoch=epoch)
        broker.append("u", batch_of("one"), producer="collector", epoch=epoch)
        fetched = broker.fetch("u", 0, 0, max_events=10)
        assert fetched is not None
        assert [event.key for event in fetched.events] == ["1"]
