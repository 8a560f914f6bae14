"""The embedded broker does what every broker must, and a few things of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from autoglm.clock import SteeredClock
from autoglm.contracts.change_event import Partition
from autoglm.errors import FencedError, StorageError
from autoglm.plugins.kinds import Broker
from autoglm.streaming.broker import SqliteBroker
from autoglm.testing.broker_suite import BrokerSuite, Connect, batch_of, change, read_all

LEASE = timedelta(seconds=10)


class TestSqliteBroker(BrokerSuite):
    @pytest.fixture
    def connect(self, tmp_path: Path) -> Iterator[Connect]:
        self._path = tmp_path / "broker.db"
        return lambda: SqliteBroker(self._path, partitions=4)

    def with_partitions(self, partitions: int) -> Broker:
        return SqliteBroker(self._path, partitions=partitions)


@pytest.fixture
def clock() -> SteeredClock:
    return SteeredClock()


@pytest.fixture
def broker(tmp_path: Path, clock: SteeredClock) -> Iterator[SqliteBroker]:
    with closing(SqliteBroker(tmp_path / "b.db", partitions=4, clock=clock)) as made:
        yield made


def test_every_partition_has_one_reader_however_many_members_there_are(
    broker: SqliteBroker,
) -> None:
    for count in range(1, 7):
        broker.join("g", "t", member=f"m{count}", lease=LEASE)
        dealt = [broker.heartbeat("g", "t", member=f"m{i + 1}").partitions for i in range(count)]
        assert sorted(n for numbers in dealt for n in numbers) == [0, 1, 2, 3]
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_a_beat_in_time_keeps_a_member_and_a_late_one_costs_it_its_partitions(
    broker: SqliteBroker, clock: SteeredClock
) -> None:
    first = broker.join("g", "t", member="m1", lease=LEASE)
    clock.advance(9)
    assert broker.heartbeat("g", "t", member="m1") == first
    clock.advance(9)
    assert broker.heartbeat("g", "t", member="m1") == first
    clock.advance(11)
    with pytest.raises(FencedError, match="lease run out"):
        broker.heartbeat("g", "t", member="m1")
    assert broker.join("g", "t", member="m1", lease=LEASE).generation > first.generation


def test_a_clock_set_back_does_not_make_a_lease_longer(
    broker: SqliteBroker, clock: SteeredClock
) -> None:
    broker.join("g", "t", member="dead", lease=LEASE)
    clock.advance(-86_400)
    taken = broker.join("g", "t", member="living", lease=LEASE)
    assert taken.partitions == (0, 1, 2, 3)


def test_whole_batches_that_every_group_has_are_dropped_and_asking_for_them_is_an_error(
    broker: SqliteBroker,
) -> None:
    epoch = broker.new_epoch("t", "p")
    for place in range(3):
        events = [change("k", 10 * place + i) for i in range(10)]
        broker.append("t", batch_of(events, str(place)), producer="p", epoch=epoch)
    number = read_all(broker, "t")[0].partition
    broker.hint("g", {Partition(group="g", topic="t", number=number): 25})
    broker.join("late", "t", member="m", lease=LEASE)
    assert broker.retain("t") == 0, "a group that has read nothing needs all"
    broker.hint("late", {Partition(group="late", topic="t", number=number): 30})
    assert broker.retain("t") == 20
    assert broker.begin_offset("t", number) == 20
    with pytest.raises(StorageError, match="the oldest that is kept is 20") as caught:
        broker.fetch("t", number, 19, max_events=1)
    assert caught.value.code == "broker.offset_gone"


def test_what_was_not_committed_is_not_there_after_a_failure(
    broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoglm import fail_points

    epoch = broker.new_epoch("t", "p")
    batch = batch_of([change("k", 1)], "1")
    fail_points.arm("hop2.before_commit:raise")
    with pytest.raises(StorageError) as caught:
        broker.append("t", batch, producer="p", epoch=epoch)
    assert caught.value.code == "storage.full"
    assert (read_all(broker, "t"), broker.position("t", "p")) == ([], "")
    broker.append("t", batch, producer="p", epoch=epoch)
    assert len(read_all(broker, "t")) == 1
