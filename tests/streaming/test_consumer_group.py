"""Several workers share a topic: whoever dies, sleeps or comes, each change is in the table once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.streaming.broker import SqliteBroker
from autoglm.testing.broker_suite import batch_of, change

PATIENCE = 120.0
LEASE = 1.0


class Stream:
    """A broker that is filled, workers as processes, and what must be in the table at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = SqliteBroker(folder / "broker.db", partitions=4)
        self.table = DeltaFeatureTable(
            folder / "table", project="p", key="id", text="text", label="label"
        )
        self._epoch = self.broker.new_epoch("t", "s")
        self.sent: list[tuple[str, int]] = []
        self.workers: list[subprocess.Popen[bytes]] = []

    def feed(self, count: int) -> None:
        events = []
        for _ in range(count):
            version = len(self.sent)
            key = f"k{version % 37}"
            row = {"id": key, "text": f"text {version}", "label": "ab"[version % 2]}
            events.append(change(key, version, row))
            self.sent.append((key, version))
        self.broker.append(
            "t", batch_of(events, str(len(self.sent))), producer="s", epoch=self._epoch
        )

    def start(self, failpoint: str = "") -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("worker_child.py")
        worker = subprocess.Popen(
            [sys.executable, str(script), str(self.folder), str(LEASE)],
            stdin=subprocess.PIPE,
            env={**os.environ, "AUTOGLM_FAILPOINT": failpoint},
        )
        self.workers.append(worker)
        return worker

    def put_to_sleep(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGSTOP between two transactions: one that sleeps within keeps all others waiting."""
        import sqlite3

        for _attempt in range(200):
            worker.send_signal(signal.SIGSTOP)
            with closing(sqlite3.connect(self.folder / "broker.db", timeout=0.1)) as connection:
                try:
                    connection.execute("begin immediate")
                    return
                except sqlite3.OperationalError:
                    worker.send_signal(signal.SIGCONT)
                    time.sleep(0.01)
        raise AssertionError("never found between two transactions")

    def stored(self) -> list[dict[str, Any]]:
        """The log, read by deltalake alone."""
        from deltalake import DeltaTable

        if self.table.version < 0:
            return []
        columns = ["_key", "_version", "_partition", "_offset"]
        rows = DeltaTable(str(self.folder / "table")).to_pyarrow_table(columns=columns)
        found: list[dict[str, Any]] = rows.to_pylist()
        return found

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            assert time.monotonic() < deadline, f"never came: {what}"
            time.sleep(0.05)

    def until_done(self) -> None:
        self.until(lambda: len(self.stored()) >= len(self.sent), "all rows in the table")

    def readers(self) -> set[str]:
        import sqlite3

        with sqlite3.connect(self.folder / "broker.db") as connection:
            rows = connection.execute("select id from member where beyond > first").fetchall()
        connection.close()
        return {name for (name,) in rows}

    def check(self) -> None:
        """Every change once, and per key in the order in which they were sent."""
        rows = self.stored()
        assert sorted((r["_key"], r["_version"]) for r in rows) == sorted(self.sent)
        rows.sort(key=lambda r: (r["_partition"], r["_offset"]))
        for key in {k for k, _ in self.sent}:
            versions = [r["_version"] for r in rows if r["_key"] == key]
            assert versions == sorted(versions)

    def end(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait(PATIENCE)
        self.broker.close()


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    made = Stream(tmp_path)
    yield made
    made.end()


def test_workers_that_come_and_go_share_the_work_and_each_change_arrives_once(
    stream: Stream,
) -> None:
    stream.feed(400)
    first = stream.start()
    stream.until(lambda: len(stream.readers()) == 1, "one reader")
    second = stream.start()
    stream.until(lambda: len(stream.readers()) == 2, "two readers")
    stream.feed(400)
    first.communicate(timeout=PATIENCE)
    assert first.returncode == 0
    stream.until(lambda: stream.readers() == {f"m{second.pid}"}, "the other reads all")
    stream.feed(200)
    stream.until_done()
    stream.check()


def test_a_killed_worker_is_replaced_within_two_leases(stream: Stream) -> None:
    workers = [stream.start(), stream.start()]
    stream.until(lambda: len(stream.readers()) == 2, "two readers")
    workers[0].kill()
    workers[0].communicate()
    killed = time.monotonic()
    stream.until(lambda: stream.readers() == {f"m{workers[1].pid}"}, "the other reads all")
    print(f"taken over after {time.monotonic() - killed:.1f} s with a lease of {LEASE:g} s")
    stream.feed(200)
    stream.until_done()
    stream.check()


def test_a_worker_that_slept_through_its_lease_is_refused_and_reads_again(
    stream: Stream,
) -> None:
    stream.feed(300)
    sleeper = stream.start()
    stream.until(lambda: len(stream.stored()) > 0, "the first rows")
    stream.put_to_sleep(sleeper)
    stream.feed(300)
    other = stream.start()
    stream.until(lambda: stream.readers() == {f"m{other.pid}"}, "the other reads all")
    stream.until_done()
    sleeper.send_signal(signal.SIGCONT)
    stream.until(lambda: len(stream.readers()) == 2, "the sleeper is a member again")
    stream.feed(300)
    stream.until_done()
    stream.check()


def soak(stream: Stream, *, wanted: int, seed: int) -> dict[str, int]:
    """Kill workers at seeded fail points of hops 3 to 5, and put others to sleep; then compare."""
    draw = random.Random(seed)
    points = [
        "hop3.before_process", "hop3.after_process", "hop4.before_commit", "hop4.after_commit",
        "hop5.before_hint", "hop5.after_hint",
    ]  # fmt: skip
    counts = {"kills": 0, "zombies": 0}
    while counts["kills"] < wanted:
        stream.feed(draw.randint(60, 200))
        point = points[counts["kills"] % len(points)]
        doomed = stream.start(f"{point}:kill@{draw.randint(1, 2)}")
        if counts["kills"] % 5 == 2:
            sleeper = stream.start()
            stream.until(lambda: len(stream.readers()) > 0, "a reader")
            time.sleep(draw.random() / 20)
            stream.put_to_sleep(sleeper)
            helper = stream.start()
            stream.until(lambda h=helper: f"m{h.pid}" in stream.readers(), "the helper reads")  # type: ignore[misc]
            stream.until_done()
            sleeper.send_signal(signal.SIGCONT)
            counts["zombies"] += 1
            for worker in (sleeper, helper):
                worker.communicate(timeout=PATIENCE)
                assert worker.returncode == 0
        stream.until(
            lambda d=doomed: d.poll() is not None or len(stream.stored()) == len(stream.sent),  # type: ignore[misc]
            "the end of the doomed",
        )
        doomed.communicate(timeout=PATIENCE)
        counts["kills"] += doomed.returncode == -signal.SIGKILL
    stream.start()
    stream.until_done()
    stream.check()
    return counts


def test_workers_killed_anywhere_and_zombies_neither_lose_nor_double_nor_reorder(
    stream: Stream,
) -> None:
    counts = soak(stream, wanted=6, seed=3)
    assert counts["zombies"] >= 1


@pytest.mark.soak
def test_workers_killed_by_the_hundred_neither_lose_nor_double_nor_reorder(
    stream: Stream,
) -> None:
    counts = soak(
        stream,
        wanted=int(os.environ.get("KILLS", "60")),
        seed=int(os.environ.get("SEED", "0")),
    )
    print(
        f"sqlite, consumer group: {counts['kills']} kills, {counts['zombies']} zombies,"
        f" {len(stream.sent)} changes: 0 lost, 0 doubled, 0 out of order"
    )
