"""What every source must do, as tests: subclass it in yours and give it a fixture.

    class TestMySource(SourceSuite):
        sees_deletes = False

        @pytest.fixture
        def world(self) -> Iterator[World]:
            yield MyWorld(address)

A `World` is the place where rows change: it begins empty. What a source cannot see is said by an
attribute, and must be in its `promise`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent
from autoglm.plugins.kinds import Source

PATIENCE_SECONDS = 60.0


class World(Protocol):
    """Rows have the columns `id` (the key) and `text`."""

    def open(self, *, batch_rows: int = 100) -> Source:
        """A new source on this place, as after a restart; its project is `suite`."""
        ...

    def upsert(self, key: str, text: str) -> None:
        """Commit this row, new or changed."""
        ...

    def delete(self, key: str) -> None: ...


class _Reader:
    """Reads and stores as a collector does, in memory."""

    def __init__(self, world: World, *, batch_rows: int = 100) -> None:
        self._world, self._batch_rows = world, batch_rows
        self.position, self.events = "", list[ChangeEvent]()

    def read(self, *, batches: int | None = None) -> list[ChangeEvent]:
        """With a new source; dies behind so many batches."""
        source, new = self._world.open(batch_rows=self._batch_rows), list[ChangeEvent]()
        found = source.read(self.position)
        for number, batch in enumerate(found, start=1):
            new += self.store(source, batch)
            if number == batches:
                break
        if hasattr(found, "close"):
            found.close()
        return new

    def store(self, source: Source, batch: ChangeBatch) -> list[ChangeEvent]:
        # A broker takes it for the batch before, come again, and drops it.
        assert not batch.events or batch.position != self.position
        self.position = batch.position
        self.events += batch.events
        if hasattr(source, "acknowledge"):
            source.acknowledge(batch.position)
        return list(batch.events)

    def table(self) -> dict[str, str]:
        """Key → text of the newest version."""
        newest: dict[str, ChangeEvent] = {}
        for event in self.events:
            assert event.key not in newest or newest[event.key].version < event.version
            newest[event.key] = event
        return {key: event.row["text"] for key, event in newest.items() if event.op == "upsert"}


class SourceSuite:
    """`sees_deletes`: a removed row is an event."""

    sees_deletes = True

    def test_rows_that_are_there_arrive_once(self, world: World) -> None:
        for number in range(5):
            world.upsert(str(number), f"text {number}")
        reader = _Reader(world)
        reader.read()
        assert sorted(event.key for event in reader.events) == ["0", "1", "2", "3", "4"]
        assert reader.read() == [], "nothing changed"

    def test_an_event_says_whose_it_is_and_is_json(self, world: World) -> None:
        world.upsert("1", "ü")
        source = world.open()
        assert source.promise
        for batch in source.read(""):
            assert (batch.project, batch.source) == ("suite", source.name)
            assert batch.position.encode("utf-8")
            for event in batch.events:
                assert (event.project, event.source) == ("suite", source.name)
                assert (event.op, event.key, event.row["text"]) == ("upsert", "1", "ü")
                assert str(event.row["id"]) == "1"
                assert json.loads(json.dumps(dict(event.row))) == event.row
                assert event.committed_at.tzinfo is not None

    def test_a_change_is_a_newer_version_of_its_key(self, world: World) -> None:
        reader = _Reader(world)
        for text in ("first", "second", "third"):
            world.upsert("1", text)
            assert [event.row["text"] for event in reader.read()] == [text]
        assert reader.table() == {"1": "third"}

    def test_a_removed_row_is_a_delete_where_the_source_sees_it(self, world: World) -> None:
        reader = _Reader(world)
        world.upsert("1", "a")
        world.upsert("2", "b")
        reader.read()
        world.delete("1")
        expected = [("delete", "1")] if self.sees_deletes else []
        assert [(event.op, event.key) for event in reader.read()] == expected
        world.upsert("1", "back")
        reader.read()
        assert reader.table() == {"1": "back", "2": "b"}

    def test_whoever_dies_after_any_batch_loses_and_doubles_nothing(self, world: World) -> None:
        for number in range(7):
            world.upsert(str(number), "old")
        reader = _Reader(world, batch_rows=2)
        for number in range(7):
            reader.read(batches=1)
            world.upsert(str(number + 7), "new")
        for _attempt in range(20):
            reader.read(batches=1)
        reader.read()
        assert sorted(event.key for event in reader.events) == sorted(map(str, range(14)))

    def test_a_batch_has_as_many_events_as_was_asked(self, world: World) -> None:
        for number in range(7):
            world.upsert(str(number), "x")
        sizes = [len(batch.events) for batch in world.open(batch_rows=3).read("")]
        assert max(sizes) <= 3
        assert sum(sizes) == 7

    def test_reading_again_from_a_position_gives_the_same_events(self, world: World) -> None:
        reader = _Reader(world)
        world.upsert("1", "a")
        reader.read()
        world.upsert("2", "b")
        world.upsert("3", "c")
        once, again = (
            [
                (e.op, e.key, dict(e.row))
                for b in world.open().read(reader.position)
                for e in b.events
            ]
            for _attempt in range(2)
        )
        assert once == again
        assert sorted(key for _op, key, _row in once) == ["2", "3"]

    def test_following_sees_what_comes_and_ends_when_cancelled(self, world: World) -> None:
        source: Any = world.open()
        if not hasattr(source, "follow"):
            return
        world.upsert("1", "there")
        cancel, reader = threading.Event(), _Reader(world)

        def follow() -> None:
            for batch in source.follow("", cancel=cancel):
                reader.store(source, batch)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            _until(lambda: [event.key for event in reader.events] == ["1"])
            world.upsert("2", "came")
            _until(lambda: [event.key for event in reader.events] == ["1", "2"])
        finally:
            cancel.set()
            thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.02)
