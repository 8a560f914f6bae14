"""How far a worker is behind, and how long a change takes from its commit to the table."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise

from autoglm.clock import Clock
from autoglm.contracts.change_event import ChangeEvent, Partition
from autoglm.contracts.event_columns import EventColumns
from autoglm.observability.metric_files import Family
from autoglm.plugins.kinds import Broker
from autoglm.streaming.consumer_group import Committed

BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0, 86_400.0)


class StreamFigures:
    """Counts of one worker since it began; lag of the partitions that are its own now."""

    def __init__(self, broker: Broker, *, project: str, worker: str, clock: Clock) -> None:
        self._broker, self._clock = broker, clock
        self._labels = {"project": project, "worker": worker}
        self._counts = dict.fromkeys(("rows", "dead", "commits"), 0)
        self._delays = [0] * (len(BUCKETS) + 1)
        self._delay_sum = 0.0
        self._offsets: dict[Partition, int] = {}
        # Per partition: all that was committed at the source before is in the table.
        self._fresh_until: dict[Partition, float] = {}

    def committed(self, done: Committed) -> None:
        """After a commit: counts, and the delay of each event."""
        self._offsets = dict(done.offsets)
        self._counts["rows"] += done.rows
        self._counts["dead"] += done.dead
        self._counts["commits"] += 1
        now = self._clock.now().timestamp()
        moments = sorted(_moments(done.events))
        self._delay_sum += sum(max(0.0, now - moment) for moment in moments)
        # Of sorted moments, those between two bounds are a difference of two places.
        bounds = [len(moments) - bisect_left(moments, now - limit) for limit in BUCKETS]
        for place, (lower, upper) in enumerate(pairwise([0, *bounds, len(moments)])):
            self._delays[place] += upper - lower
        for partition in self._offsets:
            if moments:
                newest = max(self._fresh_until.get(partition, 0.0), moments[-1])
                self._fresh_until[partition] = newest

    def placed(self, offsets: Mapping[Partition, int]) -> None:
        """The partitions that the worker reads from now on, and from where."""
        self._offsets = dict(offsets)

    def lag(self) -> dict[Partition, tuple[int, float]]:
        """Partition → rows that wait, and for how many seconds at most."""
        now, found = self._clock.now().timestamp(), {}
        for partition, offset in self._offsets.items():
            rows = max(0, self._broker.end_offset(partition.topic, partition.number) - offset)
            if rows == 0:
                self._fresh_until[partition] = now
            found[partition] = (rows, max(0.0, now - self._fresh_until.get(partition, now)))
        return found

    def families(self) -> list[Family]:
        rows = Family(
            name="autoglm_stream_lag_rows", kind="gauge",
            what="Events of the broker that are not in the feature table yet.",
        )  # fmt: skip
        seconds = Family(
            name="autoglm_stream_lag_seconds", kind="gauge",
            what="For how long the oldest of them may have waited.",
        )  # fmt: skip
        for partition, (waiting, age) in self.lag().items():
            place = {"topic": partition.topic, "partition": str(partition.number)}
            rows.add(waiting, **self._labels, **place)
            seconds.add(age, **self._labels, **place)
        counted = Family(
            name="autoglm_stream_events", kind="counter", what="Events taken into the table."
        )
        for name in ("rows", "dead"):
            counted.add(self._counts[name], "_total", **self._labels, outcome=name)
        commits = Family(
            name="autoglm_stream_commits", kind="counter", what="Commits of the feature table."
        )
        commits.add(self._counts["commits"], "_total", **self._labels)
        return [rows, seconds, counted, commits, self._histogram()]

    def _histogram(self) -> Family:
        delay = Family(
            name="autoglm_stream_delay_seconds", kind="histogram",
            what="From the commit at the source to the commit of the feature table.",
        )  # fmt: skip
        total = 0
        for limit, count in zip((*BUCKETS, float("inf")), self._delays, strict=True):
            total += count
            bound = "+Inf" if limit == float("inf") else f"{limit:g}"
            delay.add(total, "_bucket", **self._labels, le=bound)
        delay.add(total, "_count", **self._labels)
        delay.add(self._delay_sum, "_sum", **self._labels)
        return delay


def backlog(broker: Broker, group: str, topic: str) -> int:
    """Events of `topic` that the group has not told to have in its table."""
    told = broker.hints(group, topic)
    return sum(
        max(0, broker.end_offset(topic, n) - told.get(n, broker.begin_offset(topic, n)))
        for n in range(broker.num_partitions(topic))
    )


def _moments(events: Sequence[ChangeEvent]) -> Sequence[float]:
    """When each was committed at its source, in seconds since 1970."""
    if isinstance(events, EventColumns):
        import pyarrow as pa
        import pyarrow.compute as pc

        microseconds = events.table["_committed_at"].cast(pa.int64())
        found: list[float] = pc.divide(microseconds.cast(pa.float64()), 1e6).to_pylist()
        return found
    return [event.committed_at.timestamp() for event in events]
