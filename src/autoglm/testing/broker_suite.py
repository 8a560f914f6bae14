"""What every broker driver must do, as tests: subclass it in yours and give it a fixture.

    class TestMyBroker(BrokerSuite):
        @pytest.fixture
        def connect(self) -> Iterator[Connect]:
            yield lambda: MyBroker(address, partitions=4)

`connect` opens a new connection to the same broker, as another process would. A topic of four
partitions must be what the driver makes. What a broker cannot do is said by an attribute, and then
not asked: a driver that leaves one False must say so in its documentation.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent, Op, Partition
from autoglm.errors import FencedError, StorageError
from autoglm.plugins.kinds import Assignment, Broker

Connect = Callable[[], Broker]
NUM_PARTITIONS = 4
PATIENCE_SECONDS = 60.0
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def change(
    key: str, version: int, row: dict[str, Any] | None = None, op: Op = "upsert"
) -> ChangeEvent:
    return ChangeEvent(
        project="suite",
        source="suite/rows",
        key=key,
        op=op,
        version=version,
        row={"id": key, "text": f"text {version}"} if row is None else row,
        committed_at=MOMENT,
    )


def batch_of(events: Iterable[ChangeEvent], position: str) -> ChangeBatch:
    return ChangeBatch(
        project="suite",
        source="suite/rows",
        events=tuple(events),
        position=position,
        traceparent=TRACE,
    )


def read_all(broker: Broker, topic: str, *, max_events: int = 1000) -> list[ChangeEvent]:
    """Everything there is now, partition by partition, each from its oldest offset on."""
    found: list[ChangeEvent] = []
    for partition in range(broker.num_partitions(topic)):
        offset = broker.begin_offset(topic, partition)
        while (
            fetched := broker.fetch(topic, partition, offset, max_events=max_events)
        ) is not None:
            assert 0 < len(fetched.events) <= max_events
            assert fetched.range.start == offset < fetched.range.end
            found += fetched.events
            offset = fetched.range.end
    return found


def is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except FencedError:
        return True
    return False


def _code_of(call: Callable[[], object]) -> str:
    try:
        call()
    except StorageError as error:
        return error.code
    return ""


def settle(
    broker_of: dict[str, Broker], group: str, topic: str, seconds: float = PATIENCE_SECONDS
) -> dict[str, Assignment]:
    """Beat for the members until they share all partitions, and none has two readers."""
    deadline, seen = time.monotonic() + seconds, {}
    while time.monotonic() < deadline:
        for member, broker in broker_of.items():
            seen[member] = broker.heartbeat(group, topic, member=member)
        dealt = sorted(number for a in seen.values() for number in a.partitions)
        if dealt == list(range(NUM_PARTITIONS)) and all(a.partitions for a in seen.values()):
            return seen
        time.sleep(0.02)
    raise AssertionError(f"the group did not settle within {seconds:g} s: {seen}")


class BrokerSuite:
    """Each test uses a topic of its own; nothing is cleaned up."""

    # A stale epoch of another process is refused by the broker itself.
    fences_producers = True
    # A member that is gone without a word is replaced.
    takes_over = True
    lease = timedelta(seconds=1)
    # Of members that are not to lose it, however slow the machine.
    long_lease = timedelta(seconds=30)

    def test_events_come_back_as_they_were_in_the_order_of_their_key(
        self, connect: Connect
    ) -> None:
        topic = _name()
        events = [change(f"k{i % 7}", i) for i in range(50)]
        with closing(connect()) as broker:
            epoch = broker.new_epoch(topic, "p")
            broker.append(topic, batch_of(events[:30], "1"), producer="p", epoch=epoch)
            broker.append(topic, batch_of(events[30:], "2"), producer="p", epoch=epoch)
            found = read_all(broker, topic)
        assert len(found) == 50
        for key in {e.key for e in events}:
            expected = [e for e in events if e.key == key]
            assert [_bare(e) for e in found if e.key == key] == expected
            assert len({e.partition for e in found if e.key == key}) == 1
        assert {e.traceparent for e in found} == {TRACE}
        assert len({(e.partition, e.offset) for e in found}) == 50

    def test_an_event_keeps_the_source_that_gave_it_in_a_batch_of_another(
        self, connect: Connect
    ) -> None:
        """As replayed dead letters come; rows as columns, and one that needs JSON."""
        topic = _name()
        with closing(connect()) as broker:
            epoch = broker.new_epoch(topic, "suite/rows")
            rows: list[dict[str, Any]] = [{"id": "1"}, {"id": "1", "tags": ["a"]}]
            for number, row in enumerate(rows):
                events = [
                    replace(change(str(number), version, row), source=name)
                    for version, name in enumerate(("a", "b"))
                ]
                batch = batch_of(events, str(number))
                broker.append(topic, batch, producer="suite/rows", epoch=epoch)
            found = read_all(broker, topic)
        assert sorted((e.key, e.source) for e in found) == [
            ("0", "a"), ("0", "b"), ("1", "a"), ("1", "b"),
        ]  # fmt: skip

    def test_a_row_keeps_the_types_of_its_values(self, connect: Connect) -> None:
        topic = _name()
        rows: list[dict[str, Any]] = [
            {"a": 3, "b": 3.0, "c": None, "d": True, "e": "3", "f": "naïve ☃ \x00"},
            {"a": 2**53 + 1, "b": -0.5, "c": None, "d": False, "e": "", "f": "\U0001f600"},
        ]
        odd: list[dict[str, Any]] = [
            {"a": 3, "list": [1, "x", None], "map": {"k": [True]}},
            {"b": 2**70},
            {"a": 3.5},
            {"a": 3},
            {"a": "three"},
            {},
            {"": "nameless", "_key": "ours", "row": "a word of ours"},
        ]
        with closing(connect()) as broker:
            epoch = broker.new_epoch(topic, "p")
            for place, given in enumerate((rows, odd)):
                events = [change("k", 10 * place + i, row) for i, row in enumerate(given)]
                broker.append(topic, batch_of(events, str(place)), producer="p", epoch=epoch)
            found = [e.row for e in read_all(broker, topic)]
        assert found == [*rows, *odd]
        assert [[type(v) for v in row.values()] for row in found] == [
            [type(v) for v in row.values()] for row in [*rows, *odd]
        ]

    def test_a_delete_comes_back_as_one_with_and_without_its_row(self, connect: Connect) -> None:
        topic = _name()
        events = [
            change("k", 1),
            change("k", 2, {}, "delete"),
            change("k", 3, {"id": "k", "text": None}, "delete"),
            change("k", 4, {"id": None, "text": None}, "delete"),
        ]
        with closing(connect()) as broker:
            epoch = broker.new_epoch(topic, "p")
            for place, event in enumerate(events):
                broker.append(topic, batch_of([event], f"1.{place}"), producer="p", epoch=epoch)
            broker.append(topic, batch_of(events, "2"), producer="p", epoch=epoch)
            found = [_bare(e) for e in read_all(broker, topic)]
        assert found == [*events, *events]

    def test_what_was_no_row_at_its_source_comes_back_as_that(self, connect: Connect) -> None:
        topic = _name()
        found_dead = {"raw": "{broken", "cause": "no JSON", "code": "data.not_json"}
        events = [change("k", 1), change("file:3", 2, found_dead, "dead"), change("k", 3)]
        with closing(connect()) as broker:
            epoch = broker.new_epoch(topic, "p")
            broker.append(topic, batch_of(events, "1"), producer="p", epoch=epoch)
            broker.append(topic, batch_of([events[1]], "2"), producer="p", epoch=epoch)
            found = [_bare(e) for e in read_all(broker, topic)]
        assert [e for e in found if e.op == "dead"] == [events[1], events[1]]
        assert [e for e in found if e.op != "dead"] == [events[0], events[2]]

    def test_a_batch_without_events_moves_the_position(self, connect: Connect) -> None:
        topic = _name()
        with closing(connect()) as broker, closing(connect()) as again:
            epoch = broker.new_epoch(topic, "p")
            broker.append(topic, batch_of([], "one"), producer="p", epoch=epoch)
            assert again.position(topic, "p") == "one"
            broker.append(topic, batch_of([change("k", 1)], "two"), producer="p", epoch=epoch)
            broker.append(topic, batch_of([], "three"), producer="p", epoch=epoch)
            assert again.position(topic, "p") == "three"
            assert len(read_all(again, topic)) == 1

    def test_a_long_position_is_the_producers_and_no_batch_repeats_it(
        self, connect: Connect
    ) -> None:
        topic, positions = _name(), [f"{number}" * 100_000 for number in (1, 2)]
        with closing(connect()) as broker:
            epoch = broker.new_epoch(topic, "p")
            for version, position in enumerate(positions):
                batch = batch_of([change("k", version)], position)
                broker.append(topic, batch, producer="p", epoch=epoch)
            assert broker.position(topic, "p") == positions[-1]
            (partition,) = {event.partition for event in read_all(broker, topic)}
            found = [broker.fetch(topic, partition, at, max_events=1) for at in (0, 1)]
        names = [fetched.position for fetched in found if fetched is not None]
        assert len(set(names)) == 2
        assert max(map(len, names)) <= 256

    def test_a_batch_at_the_stored_position_is_ignored(self, connect: Connect) -> None:
        topic = _name()
        with closing(connect()) as broker, closing(connect()) as again:
            assert broker.position(topic, "p") == ""
            epoch = broker.new_epoch(topic, "p")
            broker.append(topic, batch_of([change("k", 1)], "one"), producer="p", epoch=epoch)
            broker.append(topic, batch_of([change("k", 1)], "one"), producer="p", epoch=epoch)
            assert again.position(topic, "p") == "one"
            assert again.position(topic, "somebody else") == ""
            assert len(read_all(again, topic)) == 1

    def test_a_producer_that_took_over_goes_on_at_the_position_of_the_one_before(
        self, connect: Connect
    ) -> None:
        topic = _name()
        with closing(connect()) as first:
            epoch = first.new_epoch(topic, "p")
            first.append(topic, batch_of([change("k", 1)], "one"), producer="p", epoch=epoch)
        with closing(connect()) as second:
            epoch = second.new_epoch(topic, "p")
            assert second.position(topic, "p") == "one"
            second.append(topic, batch_of([change("k", 2)], "two"), producer="p", epoch=epoch)
            assert second.position(topic, "p") == "two"
            assert [e.version for e in read_all(second, topic)] == [1, 2]

    def test_an_older_epoch_is_refused_and_nothing_of_it_is_seen(self, connect: Connect) -> None:
        if not self.fences_producers:
            return
        topic = _name()
        with closing(connect()) as old, closing(connect()) as new:
            stale = old.new_epoch(topic, "p")
            old.append(topic, batch_of([change("k", 1)], "one"), producer="p", epoch=stale)
            newest = new.new_epoch(topic, "p")
            late = batch_of([change("k", 99)], "late")
            assert is_refused(lambda: old.append(topic, late, producer="p", epoch=stale))
            new.append(topic, batch_of([change("k", 2)], "two"), producer="p", epoch=newest)
            assert new.position(topic, "p") == "two"
            assert [e.version for e in read_all(new, topic)] == [1, 2]

    def test_reading_begins_anywhere_and_takes_no_more_than_asked(self, connect: Connect) -> None:
        topic = _name()
        with closing(connect()) as broker:
            epoch = broker.new_epoch(topic, "p")
            for place in range(3):
                events = [change("k", 10 * place + i) for i in range(10)]
                broker.append(topic, batch_of(events, str(place)), producer="p", epoch=epoch)
            whole = read_all(broker, topic)
            assert read_all(broker, topic, max_events=3) == whole
            for place in (0, 4, 9, 17, 29):
                at = whole[place]
                fetched = broker.fetch(topic, at.partition, at.offset, max_events=5)
                assert fetched is not None
                assert fetched.events[0] == at
                assert fetched.source == "suite/rows"
                assert fetched.traceparent == TRACE
            end = broker.end_offset(topic, whole[0].partition)
            assert end > whole[-1].offset
            assert broker.fetch(topic, whole[0].partition, end, max_events=5) is None

    def test_a_row_of_a_megabyte_passes(self, connect: Connect) -> None:
        topic = _name()
        event = change("k", 1, {"id": "k", "text": "x" * 900_000})
        with closing(connect()) as broker:
            epoch = broker.new_epoch(topic, "p")
            broker.append(topic, batch_of([event], "1"), producer="p", epoch=epoch)
            assert [_bare(e) for e in read_all(broker, topic)] == [event]

    def test_two_members_share_the_partitions_and_one_that_leaves_gives_them_up(
        self, connect: Connect
    ) -> None:
        topic, group = _name(), _name()
        with closing(connect()) as one, closing(connect()) as two:
            one.num_partitions(topic)
            one.join(group, topic, member="m1", lease=self.long_lease)
            alone = settle({"m1": one}, group, topic)
            two.join(group, topic, member="m2", lease=self.long_lease)
            both = settle({"m1": one, "m2": two}, group, topic)
            assert {len(a.partitions) for a in both.values()} == {2}
            assert both["m1"].generation != alone["m1"].generation
            one.leave(group, topic, member="m1")
            assert settle({"m2": two}, group, topic)["m2"].partitions == (0, 1, 2, 3)

    def test_who_lets_the_lease_run_out_is_replaced_within_two_leases(
        self, connect: Connect
    ) -> None:
        if not self.takes_over:
            return
        topic, group = _name(), _name()
        with closing(connect()) as silent, closing(connect()) as other:
            silent.num_partitions(topic)
            silent.join(group, topic, member="m1", lease=self.lease)
            other.join(group, topic, member="m2", lease=self.lease)
            settle({"m1": silent, "m2": other}, group, topic)
            self.fall_silent(silent)
            settle({"m2": other}, group, topic)
            assert is_refused(lambda: silent.heartbeat(group, topic, member="m1"))

    def test_a_hint_is_seen_by_others_and_one_of_an_old_generation_is_refused(
        self, connect: Connect
    ) -> None:
        topic, group = _name(), _name()
        with closing(connect()) as one, closing(connect()) as two:
            one.num_partitions(topic)
            one.join(group, topic, member="m1", lease=self.long_lease)
            alone = settle({"m1": one}, group, topic)["m1"]
            told = {Partition(group=group, topic=topic, number=1): 5}
            one.hint(group, told, generation=alone.generation)
            assert _soon(lambda: dict(two.hints(group, topic)) == {1: 5})
            two.join(group, topic, member="m2", lease=self.long_lease)
            settle({"m1": one, "m2": two}, group, topic)
            assert is_refused(lambda: one.hint(group, told, generation=alone.generation))

    def test_nothing_that_a_group_has_not_read_is_dropped(self, connect: Connect) -> None:
        topic, groups = _name(), (_name(), _name())
        with closing(connect()) as broker:
            epoch = broker.new_epoch(topic, "p")
            for place in range(6):
                events = [change("k", 10 * place + i) for i in range(10)]
                broker.append(topic, batch_of(events, str(place)), producer="p", epoch=epoch)
            whole = read_all(broker, topic)
            number = whole[0].partition
            for group, place in zip(groups, (15, 35), strict=True):
                offsets = {
                    Partition(group=group, topic=topic, number=n): broker.end_offset(topic, n)
                    for n in range(NUM_PARTITIONS)
                }
                offsets[Partition(group=group, topic=topic, number=number)] = whole[place].offset
                broker.hint(group, offsets)
            broker.retain(topic)
            assert read_all(broker, topic)[-45:] == whole[-45:]
            assert broker.position(topic, "p") == "5"

    def test_the_number_of_partitions_is_for_life(self, connect: Connect) -> None:
        topic = _name()
        with closing(connect()) as broker:
            assert broker.num_partitions(topic) == NUM_PARTITIONS
        with closing(self.with_partitions(NUM_PARTITIONS + 1)) as other:
            assert _code_of(lambda: other.num_partitions(topic)) == "broker.partitions_changed"

    def with_partitions(self, partitions: int) -> Broker:
        """A connection to the broker of `connect` that is told of another number of partitions."""
        raise NotImplementedError

    def fall_silent(self, broker: Broker) -> None:
        """As if the member's process had died. Default: nobody beats for it any more."""


def _bare(event: ChangeEvent) -> ChangeEvent:
    """As it was before it had been in a broker."""
    return replace(event, partition=-1, offset=-1, traceparent="")


def _soon(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _name() -> str:
    return f"suite-{uuid.uuid4().hex[:12]}"
