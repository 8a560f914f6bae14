"""A member of Kafka's own consumer groups, and what its errors are among ours.

The member reads nothing: it only learns what is its.

Messages are read by another consumer of the same connection, from the offsets of the feature table;
the member's own partitions are paused as soon as they are given. Extra: kafka.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from autoglm.errors import FencedError, StorageError
from autoglm.plugins.kinds import Assignment

FENCED = {
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
}

UNREACHABLE = "broker.unreachable"


def translated(error: KafkaException) -> StorageError:
    cause: KafkaError = error.args[0]
    if cause.code() in FENCED:
        return FencedError(f"Kafka: {cause.str()}.", next_step="A newer process has taken over.")
    is_away = cause.code() in {
        KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE, KafkaError._WAIT_COORD, KafkaError.REQUEST_TIMED_OUT,
    }  # fmt: skip
    return StorageError(
        f"Kafka: {cause.name()}: {cause.str()}.",
        code=UNREACHABLE if is_away else "broker.refused",
        next_step="Check streaming.broker.bootstrap; it is tried again."
        if is_away
        else "`autoglm streaming check BOOTSTRAP` says what the cluster can do.",
    )


@contextmanager
def in_our_words() -> Iterator[None]:
    """What Kafka raises inside is raised as an error of ours."""
    try:
        yield
    except KafkaException as error:
        raise translated(error) from error


class Member:
    """Kafka's threads say that the process lives; `beat` says that it works."""

    def __init__(
        self, settings: dict[str, Any], *, group: str, topic: str, lease: timedelta
    ) -> None:
        milliseconds = int(lease.total_seconds() * 1000)
        self._group, self._lease = group, lease.total_seconds()
        self._consumer = Consumer(
            {
                **settings,
                "group.id": group,
                "session.timeout.ms": milliseconds,
                # Who does not ask for its assignment for a lease is as good as dead.
                "max.poll.interval.ms": milliseconds,
                "heartbeat.interval.ms": max(100, milliseconds // 3),
                "partition.assignment.strategy": "range",
                "enable.auto.commit": False,
                "auto.offset.reset": "latest",
            }
        )
        self.generation = 0
        self._partitions: tuple[int, ...] = ()
        self._is_lost = False
        self._beat_at = time.monotonic()
        self._consumer.subscribe(
            [topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )

    def beat(self) -> Assignment:
        """Raises: FencedError when the lease has run out."""
        now = time.monotonic()
        self._is_lost = self._is_lost or now - self._beat_at > self._lease
        self._beat_at = now
        for _ in range(3):  # a revocation and the assignment after it may both wait
            message = self._consumer.poll(0)
            error = None if message is None else message.error()
            if error is not None and error.code() == KafkaError._MAX_POLL_EXCEEDED:
                self._is_lost = True
            elif error is not None and not error.retriable():
                raise KafkaException(error)
        if self._is_lost:
            raise FencedError(
                f"a member of group {self._group} let its lease run out.",
                next_step="It drops what it holds and joins again.",
            )
        return Assignment(generation=self.generation, partitions=self._partitions)

    def tell(self, places: Sequence[TopicPartition]) -> None:
        self._consumer.commit(offsets=list(places), asynchronous=True)

    def close(self) -> None:
        self._consumer.close()

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        consumer.assign(places)
        consumer.pause(places)
        self._partitions = tuple(sorted(place.partition for place in places))
        self.generation += 1

    def _revoked(self, _consumer: Consumer, _places: list[TopicPartition]) -> None:
        self._partitions = ()
        self.generation += 1

    def _lost(self, _consumer: Consumer, _places: list[TopicPartition]) -> None:
        self._partitions = ()
        self.generation += 1
        self._is_lost = True
