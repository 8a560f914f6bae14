"""A dead letter is replayed once, in whatever order and however often somebody asks."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from autoglm.contracts.change_event import ChangeBatch
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.replay import PRODUCER, Waiting, replay


def letter(number: int) -> Waiting:
    return Waiting(
        key=f"k{number}", code="data.length", cause="", raw='{"text": "a"}', version=number,
        source="s", partition=0, offset=number + 1000, traceparent="",
        committed_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip


def test_letters_replayed_one_by_one_after_all_of_them_come_once(tmp_path: Path) -> None:
    a, b, c = map(letter, range(3))
    with closing(SqliteBroker(tmp_path / "broker.db", partitions=1)) as broker:
        counts = [
            replay(letters, broker, topic="t", project="p").events
            for letters in ([a, b], [a], [b], [a], [b, c], [a, b, c])
        ]
        fetched = broker.fetch("t", 0, 0, max_events=100)
        assert fetched is not None
        end = fetched.range.end
        more = broker.fetch("t", 0, end, max_events=100)
        keys = [event.key for batch in (fetched, more) if batch for event in batch.events]
    assert counts == [2, 0, 0, 0, 1, 0]
    assert keys == ["k0", "k1", "k2"]


def test_a_replayed_letter_keeps_its_source_and_does_not_move_it(tmp_path: Path) -> None:
    with closing(SqliteBroker(tmp_path / "broker.db", partitions=1)) as broker:
        epoch = broker.new_epoch("t", "s")
        batch = ChangeBatch(project="p", source="s", events=(), position="here", traceparent="")
        broker.append("t", batch, producer="s", epoch=epoch)
        replay([letter(1), replace(letter(2), source="other")], broker, topic="t", project="p")
        fetched = broker.fetch("t", 0, 0, max_events=100)
        assert fetched is not None
        assert [(e.key, e.source, e.version) for e in fetched.events] == [
            ("k1", "s", 1), ("k2", "other", 2),
        ]  # fmt: skip
        assert fetched.source == PRODUCER, "whose position it is that the table notes"
        assert broker.position("t", "s") == "here"
