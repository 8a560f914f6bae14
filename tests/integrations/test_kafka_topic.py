"""A topic that somebody else writes, on a broker that speaks Kafka's protocol."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoglm.contracts.change_event import ChangeEvent
from autoglm.errors import SourceError
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.collector import collect
from autoglm.streaming.config import SourceConfig
from autoglm.testing.source_suite import SourceSuite
from servers import Server, until

confluent_kafka = pytest.importorskip("confluent_kafka")


class Noida(Server):
    refuses_root = False

    def __init__(self) -> None:
        super().__init__()
        import noida_db

        self.url = f"127.0.0.1:{self.port}"
        self._command = Path(noida_db.__file__).with_name("noida-db")
        self.start()

    def start(self) -> None:
        self.launch(self._command, "start", "--only", "kafka", "--kafka-port", str(self.port),
                    "--data-dir", str(self.folder / "data"))  # fmt: skip
        until(self._answers)

    def _answers(self) -> bool:
        assert not self.is_dead(), self.log()
        from confluent_kafka.admin import AdminClient

        try:
            AdminClient({"bootstrap.servers": self.url, "log_level": 0}).list_topics(timeout=1)
        except confluent_kafka.KafkaException:
            return False
        return True


@pytest.fixture(scope="module")
def kafka() -> Iterator[Noida]:
    pytest.importorskip("noida_db")
    server = Noida()
    yield server
    server.stop(signal.SIGTERM)
    server.remove()


class Topic:
    def __init__(self, server: Noida, name: str, partitions: int = 2, **said: Any) -> None:
        from confluent_kafka.admin import AdminClient, NewTopic

        from autoglm.integrations.kafka_topic import KafkaTopicSource

        self.url, self.name, self.position = server.url, name, ""
        admin = AdminClient({"bootstrap.servers": server.url, "log_level": 0})
        for future in admin.create_topics([NewTopic(name, partitions, 1)]).values():
            future.result()
        key = said.get("key", "id")
        config = SourceConfig(kind="kafka", url=server.url, topic=name, key=key)
        self.open = lambda: KafkaTopicSource(
            config, project="p", base=Path(), batch_rows=said.get("batch_rows", 100)
        )

    def grow(self, partitions: int) -> None:
        from confluent_kafka.admin import AdminClient, NewPartitions

        admin = AdminClient({"bootstrap.servers": self.url, "log_level": 0})
        for future in admin.create_partitions([NewPartitions(self.name, partitions)]).values():
            future.result()

    def send(
        self, *messages: tuple[Any, Any], commit: bool | None = None, partition: int = -1
    ) -> None:
        settings = {"bootstrap.servers": self.url, "log_level": 0, "message.max.bytes": 50_000_000}
        if commit is not None:
            settings["transactional.id"] = f"{self.name}-writer"
        producer = confluent_kafka.Producer(settings)
        if commit is not None:
            producer.init_transactions(30)
            producer.begin_transaction()
        for key, value in messages:
            raw = value if value is None or isinstance(value, bytes) else json.dumps(value)
            producer.produce(self.name, raw, key, partition)
        producer.flush(30)
        if commit is not None:
            (producer.commit_transaction if commit else producer.abort_transaction)(30)

    def read(self, *, stop_after: int | None = None) -> list[ChangeEvent]:
        new: list[ChangeEvent] = []
        batches = self.open().read(self.position)
        for number, batch in enumerate(batches, start=1):
            new += batch.events
            self.position = batch.position
            if number == stop_after:
                break
        batches.close()  # type: ignore[attr-defined]
        return new


def test_rows_and_tombstones_arrive_once_and_in_order_per_key(kafka: Noida) -> None:
    topic = Topic(kafka, "rows", batch_rows=3)
    topic.send(*((f"k{n % 5}", {"text": f"t{n}", "n": n}) for n in range(20)))
    topic.send(("k1", None))
    events = topic.read(stop_after=2)
    while more := topic.read(stop_after=1):
        events += more
    of_one = [event for event in events if event.key == "k1"]
    assert [event.row.get("n") for event in of_one] == [1, 6, 11, 16, None]
    assert of_one[-1].op == "delete"
    assert of_one[0].row["id"] == "k1", "the key is a column of the row"
    assert len(events) == 21
    assert [event.version for event in events] == list(range(1, 22))


def test_what_is_no_row_is_a_dead_letter_and_the_next_one_arrives(kafka: Noida) -> None:
    topic = Topic(kafka, "bad", partitions=1)
    topic.send(
        (None, {"text": "x"}), ("", {"text": "x"}), ("a", b"{no json"), ("b", b"[1]"),
        ("c", b'"\xff"'), ("d", b""), ("big", {"text": "x" * 900_000}), ("ok", {"text": "y", "tags": ["p"]}),
    )  # fmt: skip
    events = topic.read()
    assert [event.row["code"] for event in events if event.op == "dead"] == [
        "source.null_key", "source.null_key", "source.bad_json", "source.bad_json",
        "source.not_utf8", "source.bad_json",
    ]  # fmt: skip
    assert [event.key for event in events if event.op == "upsert"] == ["big", "ok"]
    assert events[0].key == "bad/0@0"
    assert events[-1].row["tags"] == '["p"]'


def test_a_message_key_says_all_columns_of_a_key_of_several(kafka: Noida) -> None:
    topic = Topic(kafka, "composite", partitions=1, key=("shop", "id"))
    topic.send(
        ('["de", 7]', {"text": "a"}), ('{"id": 8, "shop": "de"}', {"text": "b", "id": 8}),
        ('["de","7"]', None), ("7", {"text": "c"}), ('["de", null]', {"text": "d"}),
    )  # fmt: skip
    first, second, third, *dead = topic.read()
    assert (first.key, first.row) == ('["de","7"]', {"shop": "de", "id": 7, "text": "a"})
    assert (second.key, second.row) == ('["de","8"]', {"shop": "de", "id": 8, "text": "b"})
    assert (third.op, third.key) == ("delete", '["de","7"]')
    assert [event.row["code"] for event in dead] == ["source.bad_key", "source.null_key"]


def test_an_aborted_transaction_is_not_seen(kafka: Noida) -> None:
    topic = Topic(kafka, "transactions", partitions=1)
    topic.send(("a", {"n": 1}), commit=False)
    topic.send(("b", {"n": 2}), commit=True)
    assert [event.key for event in topic.read()] == ["b"]
    assert topic.read() == []


def test_following_ends_when_cancelled(kafka: Noida, tmp_path: Path) -> None:
    topic, cancel = Topic(kafka, "followed"), threading.Event()
    broker = SqliteBroker(tmp_path / "b.db", partitions=1)
    thread = threading.Thread(
        target=collect, args=(topic.open(), broker),
        kwargs={"topic": "t", "cancel": cancel, "follow": True},
    )  # fmt: skip
    thread.start()
    try:
        topic.send(("a", {"n": 1}))
        until(lambda: broker.end_offset("t", 0) == 1)
        topic.send(("b", {"n": 1}))
        until(lambda: broker.end_offset("t", 0) == 2)
    finally:
        cancel.set()
        thread.join(60)
    assert not thread.is_alive()
    broker.close()


def test_a_partition_that_is_added_is_read_from_its_first_message(
    kafka: Noida, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoglm.integrations.kafka_topic.LOOK_SECONDS", 0.05)
    topic, cancel, keys = Topic(kafka, "grown", partitions=1), threading.Event(), list[str]()
    topic.send(("a", {"n": 1}))

    def follow() -> None:
        for batch in topic.open().follow("", cancel=cancel):
            topic.position = batch.position
            keys.extend(event.key for event in batch.events)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        until(lambda: keys == ["a"])
        topic.grow(2)
        topic.send(("b", {"n": 2}), partition=1)
        until(lambda: keys == ["a", "b"])
        topic.grow(3)
        until(lambda: "2" in json.loads(topic.position)["offsets"])
    finally:
        cancel.set()
        thread.join(60)
    topic.send(("c", {"n": 3}), partition=2)
    assert [event.key for event in topic.read()] == ["c"], "also when nobody looked meanwhile"
    assert topic.read() == []


def test_a_broker_that_is_gone_is_named_and_reading_goes_on_once_it_is_back(
    kafka: Noida, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoglm.integrations.kafka_topic.LOOK_SECONDS", 0.1)
    monkeypatch.setattr("autoglm.integrations.kafka_topic.ANSWER_SECONDS", 0.5)
    topic, cancel = Topic(kafka, "away"), threading.Event()
    broker, codes = SqliteBroker(tmp_path / "b.db", partitions=1), list[str]()

    def collect_on() -> None:
        while not cancel.is_set():
            try:
                collect(topic.open(), broker, topic="t", cancel=cancel, follow=True)
            except SourceError as error:
                codes.append(error.code)

    thread = threading.Thread(target=collect_on)
    thread.start()
    try:
        topic.send(("a", {"n": 1}), ("b", {"n": 1}))
        until(lambda: broker.end_offset("t", 0) == 2)
        kafka.stop(signal.SIGTERM)
        until(lambda: "source.unreachable" in codes)
        kafka.start()
        topic.send(("a", {"n": 2}), ("c", {"n": 1}))
        until(lambda: broker.end_offset("t", 0) == 4)
    finally:
        cancel.set()
        thread.join(60)
    batches = [broker.fetch("t", 0, offset, max_events=1) for offset in range(4)]
    found = [batch.events[0] for batch in batches if batch is not None]
    assert sorted((event.key, event.row["n"]) for event in found) == [
        ("a", 1), ("a", 2), ("b", 1), ("c", 1),
    ]  # fmt: skip
    broker.close()


@pytest.mark.parametrize("offset", [999, -5])
def test_offsets_that_the_topic_has_not_are_no_silent_loss(kafka: Noida, offset: int) -> None:
    topic = Topic(kafka, f"offsets{abs(offset)}", partitions=1)
    topic.send(("a", {"n": 1}))
    topic.position = json.dumps({"offsets": {"0": offset}, "version": 1})
    with pytest.raises(SourceError) as caught:
        topic.read()
    assert caught.value.code == "source.log_lost"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"topic": "not-there"}, "source.no_topic"),
        ({"url": "127.0.0.1:1"}, "source.unreachable"),
        ({"options": {"no.such.setting": "1"}}, "source.bad_options"),
    ],
)
def test_what_is_missing_is_named(
    said: dict[str, Any], code: str, kafka: Noida, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoglm.integrations.kafka_topic import KafkaTopicSource

    monkeypatch.setattr("autoglm.integrations.kafka_topic.ANSWER_SECONDS", 2)
    config = SourceConfig(
        **{"kind": "kafka", "url": kafka.url, "topic": "rows", "key": "id", **said}
    )
    with pytest.raises(SourceError) as caught:
        list(KafkaTopicSource(config, project="p", base=Path(), batch_rows=9).read(""))
    assert caught.value.code == code


class KafkaWorld:
    def __init__(self, server: Noida, name: str) -> None:
        self._topic = Topic(server, name, partitions=1)
        self._url = server.url

    def open(self, *, batch_rows: int = 100) -> Any:
        from autoglm.integrations.kafka_topic import KafkaTopicSource

        config = SourceConfig(kind="kafka", url=self._url, topic=self._topic.name, key="id")
        return KafkaTopicSource(config, project="suite", base=Path(), batch_rows=batch_rows)

    def upsert(self, key: str, text: str) -> None:
        self._topic.send((key, {"text": text}))

    def delete(self, key: str) -> None:
        self._topic.send((key, None))


class TestKafkaTopic(SourceSuite):
    @pytest.fixture
    def world(self, kafka: Noida, request: pytest.FixtureRequest) -> KafkaWorld:
        return KafkaWorld(kafka, request.node.name)
