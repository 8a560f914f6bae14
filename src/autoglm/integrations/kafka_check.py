"""What a Kafka cluster does when it is asked for keys, order, transactions, fencing and groups.

Every question makes a topic of its own, which is deleted at the end. Extra: kafka.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent, Partition
from autoglm.errors import AutoGLMError, FencedError
from autoglm.plugins.kinds import Broker, Finding
from autoglm.streaming.config import BrokerConfig

if TYPE_CHECKING:
    from autoglm.integrations.kafka import KafkaBroker

LEASE = timedelta(seconds=6)
NUM_PARTITIONS, NUM_KEYS, NUM_EVENTS = 4, 20, 200
PATIENCE_SECONDS = 60.0
TRACE = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"


class Failed(Exception):
    """The cluster did something else; the text says what."""


def probe(connect: Callable[[], KafkaBroker], config: BrokerConfig) -> list[Finding]:
    """Raises: StorageError broker.unreachable when nobody answers at all."""
    prefix = f"autoglm-check-{uuid.uuid4().hex[:8]}"
    with closing(connect()) as broker:
        broker.num_partitions(f"{prefix}-reach")
        settings = broker.settings()
    questions: Mapping[str, Callable[[Callable[[], KafkaBroker], str], str]] = {
        "keys": _keys, "order": _order, "headers": _headers, "positions": _positions,
        "transactions": _transactions, "fencing": _fencing, "groups": _groups, "offsets": _offsets,
        "takeover": partial(_takeover, config=config),
    }  # fmt: skip

    def answered(name: str) -> Finding:
        return _asked(name, lambda: questions[name](connect, f"{prefix}-{name}"))

    try:
        # At once: most of the time of most is waiting for the cluster to deal out partitions.
        with ThreadPoolExecutor(len(questions)) as pool:
            return list(pool.map(answered, questions))
    finally:
        _delete(settings, prefix)


def _asked(name: str, ask: Callable[[], str]) -> Finding:
    started = time.monotonic()
    try:
        detail, is_so = ask(), True
    except Failed as failed:
        detail, is_so = str(failed), False
    except AutoGLMError as error:
        detail, is_so = error.message, False
    except KafkaException as error:
        detail, is_so = str(error.args[0].str()), False
    seconds = round(time.monotonic() - started, 1)
    return Finding(name=name, is_so=is_so, seconds=seconds, detail=detail)


def _keys(connect: Callable[[], Broker], topic: str) -> str:
    with closing(connect()) as broker:
        events = _sent(broker, topic, range(NUM_EVENTS))
    for key in {event.key for event in events}:
        places = {event.partition for event in events if event.key == key}
        if len(places) > 1:
            raise Failed(f"key {key} lies in partitions {sorted(places)}")
    if len(events) != NUM_EVENTS:
        raise Failed(f"{len(events)} of {NUM_EVENTS} events came back")
    return f"{NUM_EVENTS} events, each key in one partition"


def _order(connect: Callable[[], Broker], topic: str) -> str:
    with closing(connect()) as broker:
        for first in range(0, NUM_EVENTS, 50):
            events = _sent(broker, topic, range(first, first + 50), position=str(first))
    for key in {event.key for event in events}:
        versions = [event.version for event in events if event.key == key]
        if versions != sorted(versions) or len(versions) != NUM_EVENTS // NUM_KEYS:
            raise Failed(f"key {key} came back as {versions}")
    return "four batches, each key in the order in which it was sent"


def _headers(connect: Callable[[], Broker], topic: str) -> str:
    with closing(connect()) as broker:
        events = _sent(broker, topic, range(10))
    if {(event.traceparent, event.source) for event in events} != {(TRACE, "check")}:
        raise Failed("headers do not come back as they were")
    return "trace and source come back"


def _positions(connect: Callable[[], Broker], topic: str) -> str:
    with closing(connect()) as broker, closing(connect()) as other:
        _sent(broker, topic, range(10), position="one")
        _sent(broker, topic, range(10, 20), position="two")
        found = other.position(topic, "check")
    if found != "two":
        raise Failed(f"another connection reads position {found!r}, not 'two'")
    return "committed with the events, read back by another connection"


def _transactions(connect: Callable[[], KafkaBroker], topic: str) -> str:
    with closing(connect()) as broker:
        broker.num_partitions(topic)
        producer = Producer({**broker.settings(), "transactional.id": topic})
        producer.init_transactions(PATIENCE_SECONDS)
        for ends in ("abort", "commit"):
            producer.begin_transaction()
            producer.produce(topic, b"{}", ends.encode())
            producer.flush(PATIENCE_SECONDS)
            if _read(broker, topic):
                raise Failed("records of an open transaction are visible")
            end = producer.abort_transaction if ends == "abort" else producer.commit_transaction
            end(PATIENCE_SECONDS)
            found = [event.key for event in _read(broker, topic)]
            if found != ([] if ends == "abort" else ["commit"]):
                raise Failed(f"after {ends} these are visible: {found}")
    return "open and aborted ones are hidden, committed ones are seen"


def _fencing(connect: Callable[[], KafkaBroker], topic: str) -> str:
    with closing(connect()) as old, closing(connect()) as new:
        stale = old.new_epoch(topic, "check")
        _sent(old, topic, range(1), position="one", epoch=stale)
        newest = new.new_epoch(topic, "check")
        try:
            _sent(old, topic, range(1, 2), position="late", epoch=stale)
        except FencedError:
            pass
        else:
            raise Failed("a producer that was replaced can still commit")
        _sent(new, topic, range(2, 3), position="two", epoch=newest)
        versions = sorted(event.version for event in _read(new, topic))
    if versions != [0, 2]:
        raise Failed(f"events of the replaced producer are visible: {versions}")
    return "a producer that was replaced is refused, nothing of it is seen"


def _groups(connect: Callable[[], Broker], topic: str) -> str:
    with closing(connect()) as one, closing(connect()) as two:
        one.join(topic, topic, member="one", lease=LEASE)
        _settled({"one": one}, topic)
        two.join(topic, topic, member="two", lease=LEASE)
        _settled({"one": one, "two": two}, topic)
    return "two members share the partitions"


def _offsets(connect: Callable[[], Broker], topic: str) -> str:
    with closing(connect()) as broker, closing(connect()) as other:
        broker.num_partitions(topic)
        broker.hint(topic, {Partition(group=topic, topic=topic, number=2): 7})
        found = dict(other.hints(topic, topic))
    if found != {2: 7}:
        raise Failed(f"told offset 7 of partition 2, read back {found}")
    return "told and read back"


def _takeover(connect: Callable[[], Broker], topic: str, config: BrokerConfig) -> str:
    with closing(connect()) as broker:
        broker.num_partitions(topic)
        child = subprocess.Popen(
            [sys.executable, "-m", "autoglm.integrations.kafka_check", topic],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            # By standard input: arguments of a process can be seen by others, passwords too.
            secret = {**asdict(config), "password": str(config.password)}
            child.stdin.write(json.dumps(secret) + "\n")
            child.stdin.flush()
            if not child.stdout.readline():
                raise Failed("a member in another process gets no partition")
            broker.join(topic, topic, member="two", lease=LEASE)
            with suppress(Failed):  # both alive: each reads a part
                _beat_until(broker, topic, lambda own: 0 < len(own) < NUM_PARTITIONS, 30.0)
        finally:
            child.kill()
            child.communicate()
        killed = time.monotonic()
        # Later than this is too late whatever the cluster would do then.
        patience = 3 * LEASE.total_seconds()
        _beat_until(broker, topic, lambda own: len(own) == NUM_PARTITIONS, patience)
    seconds = time.monotonic() - killed
    limit = 2 * LEASE.total_seconds()
    if seconds > limit:
        raise Failed(f"only after {seconds:.0f} s, with a session of {LEASE.seconds} s")
    return f"a killed member was replaced after {seconds:.0f} s, the session was {LEASE.seconds} s"


def _sent(
    broker: Broker,
    topic: str,
    versions: range,
    *,
    position: str = "1",
    epoch: int | None = None,
) -> list[ChangeEvent]:
    """Append events of these versions, and read what the topic holds then."""
    events = tuple(
        ChangeEvent(
            project="probe",
            source="check",
            key=f"k{version % NUM_KEYS}",
            op="upsert",
            version=version,
            row={"id": version},
            committed_at=datetime.now(UTC),
        )
        for version in versions
    )
    batch = ChangeBatch(
        project="probe", source="check", events=events, position=position, traceparent=TRACE
    )
    number = broker.new_epoch(topic, "check") if epoch is None else epoch
    broker.append(topic, batch, producer="check", epoch=number)
    return _read(broker, topic)


def _read(broker: Broker, topic: str) -> list[ChangeEvent]:
    found: list[ChangeEvent] = []
    for partition in range(NUM_PARTITIONS):
        offset = broker.begin_offset(topic, partition)
        while (fetched := broker.fetch(topic, partition, offset, max_events=1000)) is not None:
            found += fetched.events
            offset = fetched.range.end
    return found


def _settled(members: dict[str, Broker], topic: str) -> None:
    deadline, dealt = time.monotonic() + PATIENCE_SECONDS, {}
    while time.monotonic() < deadline:
        for name, broker in members.items():
            dealt[name] = broker.heartbeat(topic, topic, member=name).partitions
        numbers = sorted(number for own in dealt.values() for number in own)
        if numbers == list(range(NUM_PARTITIONS)) and all(dealt.values()):
            return
        time.sleep(0.05)
    raise Failed(f"after {PATIENCE_SECONDS:.0f} s the members have {dealt}")


def _beat_until(
    broker: Broker, topic: str, is_so: Callable[[tuple[int, ...]], bool], seconds: float
) -> None:
    own: tuple[int, ...] = ()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        own = broker.heartbeat(topic, topic, member="two").partitions
        if is_so(own):
            return
        time.sleep(0.05)
    raise Failed(f"after {seconds:.0f} s the member that lives reads {list(own)}")


def _delete(settings: dict[str, object], prefix: str) -> None:
    with suppress(KafkaException):
        admin = AdminClient(settings)
        mine = [t for t in admin.list_topics(timeout=10).topics if t.startswith(prefix)]
        for done in admin.delete_topics(mine).values() if mine else ():
            with suppress(KafkaException):
                done.result(10)


@contextmanager
def _joined(config: BrokerConfig, topic: str) -> Iterator[Broker]:
    from autoglm.integrations.kafka import KafkaBroker

    with closing(KafkaBroker(config, project="probe", partitions=NUM_PARTITIONS)) as broker:
        broker.join(topic, topic, member="one", lease=LEASE)
        yield broker


def main() -> None:
    """A member that is there to be killed: says when it has partitions, then only lives."""
    config = BrokerConfig(**json.loads(sys.stdin.readline()))
    topic, deadline = sys.argv[1], time.monotonic() + PATIENCE_SECONDS
    with _joined(config, topic) as broker:
        has_told = False
        while has_told or time.monotonic() < deadline:
            own = broker.heartbeat(topic, topic, member="one").partitions
            if own and not has_told:
                print(*own, flush=True)
                has_told = True
            time.sleep(0.05)


if __name__ == "__main__":
    main()
