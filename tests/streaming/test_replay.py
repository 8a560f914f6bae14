"""A dead letter is replayed once, in whatever order and however often somebody asks."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.replay import Waiting, replay


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
