"""Port Broker on Apache Kafka, by confluent-kafka. Extra: kafka.

Events and the source's position are one Kafka transaction: the position is a record of a compacted
topic `TOPIC.positions`, as KIP-618 keeps those of its connectors. A producer that takes over fences
the one before by its transactional id. Groups are Kafka's own; what they say of offsets is a hint,
as everywhere: workers go on where the feature table says.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from autoglm import fail_points
from autoglm.contracts.change_event import ChangeBatch, OffsetRange, Partition
from autoglm.errors import ConfigError, FencedError, StorageError
from autoglm.integrations.kafka_group import FENCED, UNREACHABLE, Member, in_our_words, translated
from autoglm.integrations.kafka_lanes import QUEUED_KILOBYTES, Lanes, bounds, offset_of
from autoglm.plugins.kinds import Assignment, FetchedBatch, Finding
from autoglm.streaming.config import BrokerConfig
from autoglm.streaming.json_message import to_events, to_key, to_value, too_large
from autoglm.streaming.position_name import name_of

# Of one message: as we make a topic, and as we send. Its envelope takes less than the other.
MAX_BYTES, MAX_MESSAGE_BYTES, ENVELOPE_BYTES = "max.message.bytes", 20_000_000, 512
# After so long the cluster ends the transaction of a producer that died in it.
TRANSACTION_TIMEOUT, TRANSACTION_MILLISECONDS = "transaction.timeout.ms", 60_000
_before_commit = fail_points.declare(
    "hop2.before_kafka_commit", "messages sent, their transaction not committed"
)
_after_commit = fail_points.declare(
    "hop2.after_kafka_commit", "transaction committed, the source not told"
)


@dataclass(kw_only=True)
class _Producing:
    """One producer of this connection; `position` is that of its last commit."""

    epoch: int
    producer: Producer
    position: str
    max_bytes: int  # of one message


class KafkaBroker:
    """Port Broker on the cluster at `config.bootstrap`. One object per thread.

    Retention is the topic's own (`retain` drops nothing): keep it longer than workers may be down.
    """

    def __init__(
        self, config: BrokerConfig, *, project: str, partitions: int, patience: float = 30.0
    ) -> None:
        """`patience`: seconds after which a cluster that does not answer is an error."""
        if not config.bootstrap:
            raise ConfigError(
                "streaming.broker.bootstrap is missing: where is the cluster?",
                code="config.missing",
                next_step="Set it to HOST:PORT, or several with commas.",
            )
        self._config, self._project, self._partitions = config, project, partitions
        self._patience = patience
        self._transaction_seconds = _milliseconds(config) / 1000
        self._topics: dict[str, int] = {}
        self._epochs: dict[tuple[str, str], int] = {}
        self._producers: dict[tuple[str, str], _Producing] = {}
        self._reading: Lanes | None = None
        self._members: dict[tuple[str, str], Member] = {}
        self._askers: dict[str, Consumer] = {}

    @classmethod
    def open(
        cls, config: BrokerConfig, *, project: str, state: Path, partitions: int
    ) -> KafkaBroker:
        return cls(config, project=project, partitions=partitions)

    @classmethod
    def probe(cls, config: BrokerConfig) -> list[Finding]:
        """What the cluster can do of what is asked of it; leaves nothing behind."""
        from autoglm.integrations.kafka_check import probe

        return probe(lambda: cls(config, project="probe", partitions=4), config)

    def close(self) -> None:
        for member in self._members.values():
            member.close()
        for consumer in self._askers.values():
            consumer.close()
        if self._reading is not None:
            self._reading.close()
        for producing in self._producers.values():
            with suppress(KafkaException):  # of one that was fenced the news is told already
                producing.producer.purge()
                producing.producer.flush(1)

    # ── collectors ──

    def append(self, topic: str, batch: ChangeBatch, *, producer: str, epoch: int) -> None:
        held = self._producers.get((topic, producer))
        if held is None or held.epoch != epoch:
            raise FencedError(
                f"producer {producer} has epoch {held.epoch if held else 'none'}, not {epoch}.",
                next_step="A newer collector has taken over; this one stops.",
            )
        if held.position == batch.position:
            return
        try:
            self._transaction(held, topic, batch, producer)
        except KafkaException as error:
            raise self._failed(held.producer, producer, error) from error
        except BaseException:
            self._abort(held.producer)
            raise
        held.position = batch.position
        _after_commit()

    def new_epoch(self, topic: str, producer: str) -> int:
        self.num_partitions(topic)
        self._make_positions(topic)
        name = (topic, producer)
        old = self._producers.pop(name, None)
        if old is not None:
            old.producer.purge()
        max_bytes = self._max_message_bytes(topic)
        made = Producer(
            {
                **self.settings(),
                "transactional.id": f"autoglm/{self._project}/{topic}/{producer}",
                "partitioner": "murmur2_random",  # as Java's, so that others find a key where we do
                "linger.ms": 20,
                "queue.buffering.max.messages": 500_000,
                "message.max.bytes": max_bytes,
                TRANSACTION_TIMEOUT: int(self._transaction_seconds * 1000),
            }
        )
        with in_our_words():
            made.init_transactions(self._patience)
        self._epochs[name] = self._epochs.get(name, 0) + 1
        # Only now: what the one before still committed is in the log, and nothing follows.
        position = self.position(topic, producer)
        self._producers[name] = _Producing(
            epoch=self._epochs[name], producer=made, position=position, max_bytes=max_bytes
        )
        return self._epochs[name]

    def position(self, topic: str, producer: str) -> str:
        """The newest record of the producer in the positions topic, read to its end: an open
        transaction, of whichever producer, hides what was committed behind it, so it is waited for.
        Raises: StorageError broker.transaction_open.
        """
        name = self._make_positions(topic)
        with closing(self._consumer(**{"isolation.level": "read_uncommitted"})) as asker:
            _, end = bounds(asker, name, 0, self._config.bootstrap, self._patience)
        found, read_to = "", -1
        deadline = time.monotonic() + self._patience
        longest = deadline + self._transaction_seconds
        with closing(self._consumer()) as reader, in_our_words():
            reader.assign([TopicPartition(name, 0, OFFSET_BEGINNING)])
            while read_to < end:
                for message in reader.consume(1000, 0.1):
                    error = message.error()
                    if error is not None and error.code() != KafkaError._PARTITION_EOF:
                        raise KafkaException(error)
                    if error is not None:
                        read_to, deadline = offset_of(message), longest
                    elif message.key() == producer.encode():
                        found = (message.value() or b"").decode()
                if time.monotonic() > deadline:
                    raise self._open_transaction(name) if read_to >= 0 else _timed_out()
        return found

    def _open_transaction(self, topic: str) -> StorageError:
        return StorageError(
            f"{topic}: a producer left a transaction open, and the cluster has not ended it in"
            f" {self._transaction_seconds:g} s; what was committed behind it cannot be read.",
            code="broker.transaction_open",
            next_step="It is tried again. Was `autoglm dead-letters replay` killed? Called again it"
            " ends what it left.",
        )

    def _transaction(self, held: _Producing, topic: str, batch: ChangeBatch, name: str) -> None:
        """Raises: StorageError broker.too_large for a key or a position; a row is a dead letter."""
        producer, whole = held.producer, batch.position.encode()
        headers: list[tuple[str, bytes]] = [
            ("traceparent", batch.traceparent.encode()),
            ("source", batch.source.encode()),
            ("position", name_of(batch.position).encode()),
        ]
        room = held.max_bytes - ENVELOPE_BYTES - sum(len(n) + len(v) for n, v in headers)
        producer.begin_transaction()
        for event in batch.events:
            key, value = to_key(event), to_value(event, batch.traceparent)
            if len(key) + len(value) > room:
                dead = too_large(event, len(value), held.max_bytes)
                value = to_value(dead, batch.traceparent)
                _refuse_above(room, len(key) + len(value), f"the key {event.key[:100]!r}")
            while True:
                try:
                    producer.produce(topic, value, key, headers=headers)
                    break
                except BufferError:  # full: what was sent makes room
                    producer.poll(0.1)
        _refuse_above(room, len(whole) + len(name), f"the position of {name}")
        producer.produce(_positions(topic), whole, name.encode())
        _before_commit()
        while True:
            try:
                producer.commit_transaction(self._patience)
                return
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise

    def _failed(self, producer: Producer, name: str, error: KafkaException) -> StorageError:
        """Nothing of the transaction is seen; after a fence nothing can be done here any more."""
        cause: KafkaError = error.args[0]
        if cause.code() in FENCED:
            return FencedError(
                f"producer {name}: {cause.str()}.",
                next_step="A newer collector has taken over; this one stops.",
            )
        self._abort(producer)
        return translated(error)

    def _abort(self, producer: Producer) -> None:
        """What was begun must end: in an open transaction the next one cannot begin."""
        with suppress(KafkaException):  # the failure before it is the news
            producer.abort_transaction(self._patience)

    # ── topics ──

    def num_partitions(self, topic: str) -> int:
        found = self._make(topic, self._partitions, {})
        if found != self._partitions:
            raise StorageError(
                f"topic {topic} has {found} partitions; the configuration says {self._partitions}.",
                code="broker.partitions_changed",
                next_step=f"Set data.partitions: {found}; or let the workers read it to its end,"
                " and name another topic.",
            )
        return found

    def begin_offset(self, topic: str, partition: int) -> int:
        return self._lanes().begin(topic, partition)

    def end_offset(self, topic: str, partition: int) -> int:
        return self._lanes().end(topic, partition)

    def _make_positions(self, topic: str) -> str:
        self._make(_positions(topic), 1, {"cleanup.policy": "compact"})
        return _positions(topic)

    def _max_message_bytes(self, topic: str) -> int:
        """What the topic takes, at most what clients send; of a cluster that does not say, that."""
        ours = int(self._config.options.get("message.max.bytes", MAX_MESSAGE_BYTES))
        asked = ConfigResource(ConfigResource.Type.TOPIC, topic)
        with suppress(KafkaException, KeyError):
            admin = AdminClient(self.settings())
            said = admin.describe_configs([asked])[asked].result(self._patience)
            return min(ours, int(said[MAX_BYTES].value))
        return ours

    def _make(self, topic: str, partitions: int, settings: dict[str, str]) -> int:
        """How many partitions the topic has, once it is there."""
        if topic in self._topics:
            return self._topics[topic]
        deadline = time.monotonic() + self._patience
        config = {MAX_BYTES: str(MAX_MESSAGE_BYTES), **settings}
        with in_our_words():
            admin = AdminClient(self.settings())
            asked = -1
            while time.monotonic() < deadline:
                known = admin.list_topics(timeout=self._patience).topics.get(topic)
                if known is not None and known.error is None and known.partitions:
                    self._topics[topic] = len(known.partitions)
                    return self._topics[topic]
                # The cluster's own replication; a broker that knows no such default has one. Some
                # clusters refuse messages as large as ours: then what they take is the bound.
                ways = [(way, n) for way in (config, settings) for n in (-1, 1)]
                for way, replication in ways if asked < 0 else ():
                    new = NewTopic(topic, partitions, replication, config=way)
                    try:
                        admin.create_topics([new])[topic].result(self._patience)
                    except KafkaException as error:
                        if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                            break
                        if (way, replication) == ways[-1]:
                            raise
                    else:
                        break
                asked = 1
                time.sleep(0.05)
        raise StorageError(f"topic {topic} does not come into being.", code=UNREACHABLE)

    # ── workers ──

    def fetch(
        self, topic: str, partition: int, offset: int, *, max_events: int
    ) -> FetchedBatch | None:
        messages = self._lanes().take(topic, partition, offset, max_events=max_events)
        if not messages:
            return None
        offsets = list(map(offset_of, messages))
        # Of the last only: each call of `headers` costs as much as reading the message's JSON.
        headers = dict(messages[-1].headers() or ())
        events = to_events(
            list(map(Message.key, messages)),
            list(map(Message.value, messages)),
            partition=partition,
            offsets=offsets,
            project=self._project,
        )
        return FetchedBatch(
            events=events,
            range=OffsetRange(start=offset, end=offsets[-1] + 1),
            source=_text(headers.get("source")),
            position=_text(headers.get("position")),
            traceparent=_text(headers.get("traceparent")),
        )

    def join(self, group: str, topic: str, *, member: str, lease: timedelta) -> Assignment:
        self.num_partitions(topic)
        name = (group, topic)
        old = self._members.pop(name, None)
        with in_our_words():
            if old is not None:
                old.close()
            settings = {**self.settings(), "client.id": member}
            self._members[name] = made = Member(
                settings, group=self._group(group), topic=topic, lease=lease
            )
            return made.beat()

    def heartbeat(self, group: str, topic: str, *, member: str) -> Assignment:
        held = self._members.get((group, topic))
        if held is None:
            raise FencedError(f"{member} is no member of group {group}.")
        with in_our_words():
            return held.beat()

    def leave(self, group: str, topic: str, *, member: str) -> None:
        held = self._members.pop((group, topic), None)
        if held is not None:
            with in_our_words():
                held.close()

    def hint(
        self, group: str, offsets: Mapping[Partition, int], *, generation: int | None = None
    ) -> None:
        places = [TopicPartition(p.topic, p.number, offset) for p, offset in offsets.items()]
        with in_our_words():
            if generation is None:
                self._asker(group).commit(offsets=places, asynchronous=False)
                return
            for topic in {partition.topic for partition in offsets}:
                held = self._members.get((group, topic))
                if held is None or held.generation != generation:
                    raise FencedError(
                        f"group {group} is not in generation {generation} any more.",
                        next_step="Ask for the new assignment by a heartbeat.",
                    )
                held.tell([place for place in places if place.topic == topic])

    def hints(self, group: str, topic: str) -> Mapping[int, int]:
        places = [TopicPartition(topic, n) for n in range(self.num_partitions(topic))]
        with in_our_words():
            found = self._asker(group).committed(places, timeout=self._patience)
        return {place.partition: place.offset for place in found if place.offset >= 0}

    def retain(self, topic: str) -> int:
        """Nothing: the topic's own retention decides."""
        return 0

    # ── connections ──

    def settings(self) -> dict[str, Any]:
        """Of librdkafka, for any client of this cluster."""
        found: dict[str, Any] = {
            "bootstrap.servers": self._config.bootstrap,
            "client.id": f"autoglm.{self._project}",
            "log_level": 2,
        }
        if self._config.username:
            found |= {
                "security.protocol": "sasl_ssl",
                "sasl.mechanism": "PLAIN",
                "sasl.username": self._config.username,
                "sasl.password": str(self._config.password),
            }
        found |= self._config.options
        found.pop(TRANSACTION_TIMEOUT, None)  # of producers only
        return found

    def _consumer(self, **more: Any) -> Consumer:
        return Consumer(
            {
                **self.settings(),
                "group.id": f"autoglm.{self._project}.reader",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 50,
                "queued.max.messages.kbytes": QUEUED_KILOBYTES,
                **more,
            }
        )

    def _lanes(self) -> Lanes:
        if self._reading is None:
            self._reading = Lanes(self._consumer(), self._config.bootstrap, self._patience)
        return self._reading

    def _asker(self, group: str) -> Consumer:
        if group not in self._askers:
            self._askers[group] = self._consumer(**{"group.id": self._group(group)})
        return self._askers[group]

    def _group(self, group: str) -> str:
        return f"autoglm.{self._project}.{group}"


def _refuse_above(room: int, num_bytes: int, what: str) -> None:
    if num_bytes > room:
        raise StorageError(
            f"{what} makes a message of {num_bytes:,} bytes; the topic takes {room:,}.",
            code="broker.too_large",
            next_step=f"Raise the topic's {MAX_BYTES}, or collect fewer rows or shorter keys.",
        )


def _milliseconds(config: BrokerConfig) -> int:
    said = config.options.get(TRANSACTION_TIMEOUT, TRANSACTION_MILLISECONDS)
    try:
        return int(said)
    except (TypeError, ValueError):
        raise ConfigError(
            f"streaming.broker.options: {TRANSACTION_TIMEOUT}: {said!r} is no whole number.",
            code="config.wrong_value",
        ) from None


def _timed_out() -> KafkaException:
    return KafkaException(KafkaError(KafkaError._TIMED_OUT))


def _positions(topic: str) -> str:
    return f"{topic}.positions"


def _text(header: Any) -> str:
    return header.decode("utf-8", "replace") if isinstance(header, bytes) else ""
