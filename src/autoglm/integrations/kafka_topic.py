"""Reads a Kafka topic that somebody else writes: key = id, value = the row as JSON, no value =
deleted. As a source; the broker on Kafka is kafka.py.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent
from autoglm.errors import SourceError
from autoglm.streaming.collectors.database import plain
from autoglm.streaming.collectors.events import Maker
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.row_key import RowKey

ANSWER_SECONDS, SILENT_SECONDS, LINGER_SECONDS, WAIT_SECONDS = 10, 30, 0.05, 0.2
# The client says nothing of a broker that is gone, nor of a partition that is new: it is asked.
LOOK_SECONDS = 10.0
GONE = (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET)
NO_TOPIC = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
)


class KafkaTopicSource:
    """Port Source; also `follow`. The position is the next offset of each partition: no group is
    joined and nothing is committed at the broker.
    """

    def __init__(
        self,
        config: SourceConfig,
        *,
        project: str,
        base: Path,
        batch_rows: int,
        columns: Sequence[str] = (),
    ) -> None:
        del base, columns
        self._config, self._project, self._batch_rows = config, project, batch_rows
        self.name = f"kafka/{config.topic}"
        self._key = RowKey.of(config.key)
        self._make = Maker(project, self.name)

    @property
    def promise(self) -> str:
        return (
            f"reads the topic {self._config.topic}: sees each message of committed transactions, in"
            " order per partition; what retention or compaction removed before is not there"
        )

    def read(self, position: str) -> Iterator[ChangeBatch]:
        """What the topic holds now. Raises: SourceError (source.no_topic, source.log_lost, …)."""
        yield from self._stream(position, None)

    def follow(self, position: str, *, cancel: threading.Event) -> Iterator[ChangeBatch]:
        """As `read`, then on and on, in partitions that are added too; ends when cancelled.

        Raises: as `read`, and source.unreachable when no broker answers any more.
        """
        yield from self._stream(position, cancel)

    def acknowledge(self, position: str) -> None:
        """Nothing is kept at the broker."""

    def status(self) -> dict[str, object]:
        """Partitions and messages there. Raises: SourceError."""
        with self._opened() as consumer:
            ends = self._watermarks(consumer)
        return {"partitions": len(ends), "messages": sum(high - low for low, high in ends.values())}

    def _stream(self, position: str, cancel: threading.Event | None) -> Iterator[ChangeBatch]:
        known: Any = json.loads(position) if position else {"offsets": {}, "version": 0}
        offsets = {int(number): int(offset) for number, offset in known["offsets"].items()}
        version, events = int(known["version"]), list[ChangeEvent]()
        with self._opened() as consumer:
            ends = self._watermarks(consumer)
            offsets = self._starts(offsets, ends)
            self._assign(consumer, offsets)
            left = {n for n, (_low, high) in ends.items() if offsets[n] < high}
            since = heard = looked = time.monotonic()
            while (left or events) if cancel is None else not cancel.is_set():
                if cancel is not None and time.monotonic() - looked > LOOK_SECONDS:
                    if self._numbers(consumer) != offsets.keys():
                        ends = self._watermarks(consumer)
                        offsets = self._starts(offsets, ends)
                        self._assign(consumer, offsets)
                        # A partition that is in the position loses nothing without a word.
                        yield self._batch(events, offsets, version)
                        events = []
                    looked = time.monotonic()
                wanted = min(self._batch_rows - len(events), 10_000)
                messages = consumer.consume(wanted, LINGER_SECONDS if events else WAIT_SECONDS)
                for message in messages:
                    heard = time.monotonic()
                    if message.error() is not None:
                        self._judge(message, left)
                        continue
                    version += 1
                    since = since if events else heard
                    events.append(self._event(message, version))
                    offsets[message.partition()] = message.offset() + 1
                    if message.offset() + 1 >= ends[message.partition()][1]:
                        left.discard(message.partition())
                    if len(events) == self._batch_rows:
                        yield self._batch(events, offsets, version)
                        events = []
                is_due = not messages or not left or time.monotonic() - since > LINGER_SECONDS
                if events and is_due:
                    yield self._batch(events, offsets, version)
                    events = []
                if cancel is None and time.monotonic() - heard > SILENT_SECONDS:
                    raise self._unreachable("it sends nothing more")

    def _judge(self, message: Any, left: set[int]) -> None:
        """An error in the place of a message. Raises: SourceError."""
        error = message.error()
        if error.code() == KafkaError._PARTITION_EOF:
            left.discard(message.partition())
        elif error.code() in GONE:
            raise self._log_lost(error.str())
        elif error.code() in NO_TOPIC:
            raise self._no_topic()
        elif error.fatal() or not error.retriable() and error.code() > 0:
            raise self._unreachable(error.str())

    def _batch(
        self, events: list[ChangeEvent], offsets: Mapping[int, int], version: int
    ) -> ChangeBatch:
        return self._make.batch(events, json.dumps({"offsets": offsets, "version": version}))

    def _event(self, message: Any, version: int) -> ChangeEvent:
        key, value = message.key(), message.value()
        at = datetime.fromtimestamp(max(message.timestamp()[1], 0) / 1000, UTC)
        where = f"{message.topic()}/{message.partition()}@{message.offset()}"
        shown = "" if value is None else value.decode("utf-8", "backslashreplace")

        def dead(code: str, cause: str) -> ChangeEvent:
            return self._make.dead(where, shown, code=code, cause=cause, version=version, at=at)

        if not key:
            return dead("source.null_key", "the message has no key")
        try:
            said = key.decode("utf-8")
        except UnicodeDecodeError as error:
            return dead("source.not_utf8", str(error))
        try:
            named = self._key.said_in(said)
        except ValueError as error:
            return dead("source.bad_key", str(error))
        name = self._key.name_of(named)
        if not name:
            return dead("source.null_key", f"the message's key has an empty part: {said}")
        try:
            if value is None:
                return self._make.delete(name, version, at)
            row = json.loads(value.decode("utf-8"))
        except UnicodeDecodeError as error:
            return dead("source.not_utf8", str(error))
        except (ValueError, RecursionError) as error:
            return dead("source.bad_json", str(error))
        if not isinstance(row, dict):
            return dead("source.bad_json", "a row must be an object")
        content = {n: plain(v) for n, v in (named | row).items()}
        return self._make.upsert(name, content, version, at)

    def _assign(self, consumer: Any, offsets: Mapping[int, int]) -> None:
        consumer.assign([TopicPartition(self._config.topic, n, o) for n, o in offsets.items()])

    def _numbers(self, consumer: Any) -> set[int]:
        """The topic's partitions. Raises: KafkaException when nobody answers; SourceError."""
        topic = self._config.topic
        found = consumer.list_topics(topic, timeout=ANSWER_SECONDS).topics.get(topic)
        if found is None or not found.partitions:
            raise self._no_topic()
        orphans = [number for number, each in found.partitions.items() if each.leader < 0]
        if orphans:
            raise self._unreachable(f"no broker leads partition {min(orphans)} of {topic}")
        return set(found.partitions)

    def _watermarks(self, consumer: Any) -> dict[int, tuple[int, int]]:
        """Partition → (oldest offset, next offset)."""
        return {
            number: consumer.get_watermark_offsets(
                TopicPartition(self._config.topic, number), timeout=ANSWER_SECONDS, cached=False
            )
            for number in sorted(self._numbers(consumer))
        }

    def _starts(
        self, known: Mapping[int, int], ends: Mapping[int, tuple[int, int]]
    ) -> dict[int, int]:
        """Where to begin in each partition. Raises: SourceError source.log_lost."""
        for number, offset in known.items():
            low, high = ends.get(number, (0, -1))
            if not low <= offset <= high:
                raise self._log_lost(
                    f"partition {number} holds {low} to {high}, {offset} is next"
                    if number in ends
                    else f"partition {number} is not there any more"
                )
        return {number: known.get(number, low) for number, (low, _high) in ends.items()}

    def _log_lost(self, why: str) -> SourceError:
        return SourceError(
            f"messages of {self._config.topic} were lost to us: {why}.",
            code="source.log_lost",
            next_step="Retention removed them, or the topic was made anew. Keep it for longer than"
            " we may be away; to go on start from an empty state folder.",
        )

    def _no_topic(self) -> SourceError:
        return SourceError(
            f"there is no topic {self._config.topic!r} at {self._config.url}.",
            code="source.no_topic",
            next_step="Check data.source.topic.",
        )

    def _unreachable(self, why: str) -> SourceError:
        return SourceError(
            f"Kafka at {self._config.url}: {why}.",
            code="source.unreachable",
            retryable=True,
            next_step="Check data.source.url and its options; it is tried again.",
        )

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        settings = {
            **self._config.options,
            "bootstrap.servers": self._config.url,
            "group.id": f"autoglm-{self._project}",  # asked for by the client, never joined
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "log_level": 0,
        }
        try:
            with closing(Consumer(settings)) as consumer:
                yield consumer
        except KafkaException as error:
            cause = error.args[0]
            text = cause.str() if isinstance(cause, KafkaError) else str(cause)
            if isinstance(cause, KafkaError) and cause.code() == KafkaError._INVALID_ARG:
                raise SourceError(
                    f"data.source.options: {text}.", code="source.bad_options"
                ) from error
            raise self._unreachable(text) from error
