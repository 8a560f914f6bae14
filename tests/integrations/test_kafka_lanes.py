"""What one consumer reads is told apart by partition, whatever comes beside it."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import KafkaError, Message, TopicPartition

from autoglm.errors import StorageError
from autoglm.integrations.kafka_lanes import Lanes


class Told:
    """In the place of a consumer: no broker sends an error between two ends when it is asked to."""

    def __init__(self, *polls: list[Message]) -> None:
        self._polls = list(polls)

    def consume(self, count: int, _timeout: float) -> list[Message]:
        found = self._polls.pop(0) if self._polls and count > 1 else []
        if count == 1 and self._polls:
            return [self._polls[0].pop(0)]
        return found

    def get_watermark_offsets(self, _place: TopicPartition, **_how: Any) -> tuple[int, int]:
        return 0, 0

    def incremental_assign(self, _places: list[TopicPartition]) -> None: ...
    def resume(self, _places: list[TopicPartition]) -> None: ...


def said(partition: int, code: int) -> Message:
    return Message(topic="t", partition=partition, offset=0, error=KafkaError(code))


def test_an_error_hides_no_end_of_a_partition_that_was_told_behind_it() -> None:
    consumer = Told(
        [said(0, KafkaError._PARTITION_EOF), said(0, KafkaError._TRANSPORT),
         said(1, KafkaError._PARTITION_EOF)]
    )  # fmt: skip
    lanes = Lanes(consumer, "broker:1", patience=0.2)  # type: ignore[arg-type]
    lanes._lane("t", 1, 0)
    with pytest.raises(StorageError, match="_TRANSPORT"):
        lanes.take("t", 0, 0, max_events=1)
    assert lanes.take("t", 0, 0, max_events=1) == []
    assert lanes.take("t", 1, 0, max_events=1) == []
