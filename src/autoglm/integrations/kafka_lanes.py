"""The reading half of the broker on Kafka: partitions as lanes of one consumer, each at the offset
that its worker asks for. Extra: kafka.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from itertools import groupby

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from autoglm.errors import StorageError
from autoglm.integrations.kafka_group import UNREACHABLE, in_our_words, translated

# What waits in librdkafka for all partitions together, and here for each; above, it is paused.
QUEUED_KILOBYTES = 16_384
MAX_WAITING, MAX_WAITING_BYTES = 50_000, QUEUED_KILOBYTES << 10
MAX_AT_ONCE = 10_000


@dataclass(kw_only=True)
class _Lane:
    """One partition as it is read here: what waits, and the offset that follows what was given."""

    next: int = -1
    end_seen: int = -1  # nothing but marks of transactions lies between `next` and here
    waiting: deque[Message] = field(default_factory=deque)
    num_bytes: int = 0  # of the values that wait
    is_paused: bool = False

    def fills(self, share: float = 1.0) -> bool:
        """Whether more waits than that share of the bounds."""
        is_long = len(self.waiting) > share * MAX_WAITING
        return is_long or self.num_bytes > share * MAX_WAITING_BYTES


class Lanes:
    """What `consumer` reads, partition by partition; owns it. For one thread."""

    def __init__(self, consumer: Consumer, address: str, patience: float) -> None:
        """`patience`: seconds after which a cluster that does not answer is an error."""
        self._consumer, self._address, self._patience = consumer, address, patience
        self._lanes: dict[tuple[str, int], _Lane] = {}

    def close(self) -> None:
        self._consumer.close()

    def begin(self, topic: str, partition: int) -> int:
        """The oldest offset that is kept."""
        return self._bounds(topic, partition)[0]

    def end(self, topic: str, partition: int) -> int:
        """Where what waits ends: marks of transactions have offsets too, but are nothing of it."""
        end = self._bounds(topic, partition)[1]
        lane = self._lanes.get((topic, partition))
        return lane.next if lane is not None and lane.next < end <= lane.end_seen else end

    def take(self, topic: str, partition: int, offset: int, *, max_events: int) -> list[Message]:
        """At most `max_events` from `offset` on, none if there are none now.

        Raises: StorageError broker.offset_gone, broker.unreachable, …
        """
        lane = self._lane(topic, partition, offset)
        deadline = time.monotonic() + self._patience
        timeout = 0.0
        while not lane.waiting:
            if self._pump(timeout) == 0 and lane.end_seen >= 0:
                return []
            timeout = 0.05
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{self._address} sends nothing of topic {topic}.", code=UNREACHABLE
                )
        if len(lane.waiting) <= max_events:
            messages, lane.waiting, lane.num_bytes = list(lane.waiting), deque(), 0
        else:
            messages = [lane.waiting.popleft() for _ in range(max_events)]
            lane.num_bytes -= sum(map(len, messages))
        lane.next = offset_of(messages[-1]) + 1
        if lane.is_paused and not lane.fills(share=0.5):
            self._consumer.resume([TopicPartition(topic, partition)])
            lane.is_paused = False
        return messages

    def _lane(self, topic: str, partition: int, offset: int) -> _Lane:
        """The partition's, reading from `offset` on."""
        lane = self._lanes.get((topic, partition))
        if lane is not None and lane.next == offset:
            return lane
        begin, _ = self._bounds(topic, partition)
        if offset < begin:
            raise StorageError(
                f"topic {topic}, partition {partition}: offset {offset} is asked for, the oldest"
                f" that the cluster keeps is {begin}.",
                code="broker.offset_gone",
                next_step="Delete the project's state, and all rows are read from the source"
                " again; then give the topic a longer retention.",
            )
        place = TopicPartition(topic, partition, offset)
        with in_our_words():
            if lane is not None:
                self._consumer.incremental_unassign([TopicPartition(topic, partition)])
            self._consumer.incremental_assign([place])
            self._consumer.resume([place])
        self._lanes[topic, partition] = made = _Lane(next=offset)
        return made

    def _bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return bounds(self._consumer, topic, partition, self._address, self._patience)

    def _pump(self, timeout: float) -> int:
        """Put what has come into its lane; says how much that was."""
        with in_our_words():
            # It waits for all that it is asked for: so for one, and then takes what is there.
            messages = self._consumer.consume(1, timeout)
            messages += self._consumer.consume(MAX_AT_ONCE, 0) if messages else []
        told = [message for message in messages if message.error() is not None]
        events = [m for m in messages if m.error() is None] if told else messages
        # By what runs in C: a loop over messages cost half a microsecond of each.
        for name, of_topic in groupby(events, Message.topic):
            for number, run in groupby(of_topic, Message.partition):
                lane = self._lanes[str(name), int(number or 0)]
                came = list(run)
                lane.waiting.extend(came)
                lane.num_bytes += sum(map(len, came))
                lane.end_seen = -1
        ends = [m for m in told if m.error().code() == KafkaError._PARTITION_EOF]
        for message in ends:
            lane = self._lanes[str(message.topic()), int(message.partition() or 0)]
            if not lane.waiting or offset_of(lane.waiting[-1]) < offset_of(message):
                lane.end_seen = offset_of(message)
        for (name, number), lane in self._lanes.items():
            if lane.fills() and not lane.is_paused:
                self._consumer.pause([TopicPartition(name, number)])
                lane.is_paused = True
        # Last: what came beside an error is not lost. An end is told once, so a lane that missed
        # its own would wait for it until the patience is over.
        for message in told:
            if message.error().code() != KafkaError._PARTITION_EOF:
                raise translated(KafkaException(message.error()))
        return len(messages)


def bounds(
    consumer: Consumer, topic: str, partition: int, address: str, patience: float
) -> tuple[int, int]:
    """(oldest offset, next offset) as far as `consumer` may see. Raises: StorageError
    broker.unreachable.
    """
    with in_our_words():
        found = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=patience)
    if found is None:
        raise StorageError(f"{address} does not answer.", code=UNREACHABLE)
    return int(found[0]), int(found[1])


def offset_of(message: Message) -> int:
    found = message.offset()
    assert found is not None, "only messages that were read are asked"
    return int(found)
