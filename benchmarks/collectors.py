"""PostgreSQL's log → change events → broker → feature table: each alone, then end to end.

    python -m benchmarks.collectors [--events 100000] [--seconds 60]

Starts a PostgreSQL of its own; rows of about 200 bytes in transactions of 1,000, written before the
clock starts, so that the server decodes on the same cores while we read. End to end a collector and
a worker are threads of one process, as in `autoglm up`, and read on while rows are committed at
1,000 a second, ten a transaction.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from contextlib import closing
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from autoglm.contracts.event_columns import EventColumns  # noqa: E402
from autoglm.datasets.feature_table import DeltaFeatureTable  # noqa: E402
from autoglm.integrations.postgres import PostgresSource  # noqa: E402
from autoglm.streaming.broker import SqliteBroker  # noqa: E402
from autoglm.streaming.collector import collect  # noqa: E402
from autoglm.streaming.config import SourceConfig  # noqa: E402
from autoglm.streaming.consumer_group import Committed, Consumer  # noqa: E402
from autoglm.streaming.processor import ProcessorChain, RowProcessor  # noqa: E402
from servers import Postgres  # noqa: E402

PER_SECOND, PER_TRANSACTION = 1_000, 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=60)
    said = parser.parse_args()
    events = said.events
    server = Postgres()
    try:
        with server.connect() as connection:
            connection.execute("create table rows (id bigint primary key, text text, label text)")
            config = SourceConfig(kind="postgres", url=server.url, table="rows", key="id")
            source = PostgresSource(config, project="p", base=Path(), batch_rows=10_000)
            connection.execute(source.setup_sql)
            *_, last = source.read("")
            for round_number in range(3):
                fill(connection, round_number * events, events)
                clock, cpu, count = time.perf_counter(), time.process_time(), 0
                for batch in source.read(last.position):
                    last, count = batch, count + len(batch.events)
                    source.acknowledge(batch.position)
                report(f"log → events, round {round_number}", count, clock, cpu)
            fill(connection, 3 * events, events)
        with tempfile.TemporaryDirectory() as folder:
            broker = SqliteBroker(Path(folder) / "b.db", partitions=4)
            epoch = broker.new_epoch("t", source.name)
            broker.append("t", last, producer=source.name, epoch=epoch)
            clock, cpu = time.perf_counter(), time.process_time()
            done = collect(source, broker, topic="t", cancel=threading.Event())
            report("log → broker (SQLite, FULL)", done.events, clock, cpu)
            broker.close()
        end_to_end(server, events, said.seconds)
    finally:
        server.remove()


def end_to_end(server: Postgres, events: int, seconds: int) -> None:
    """A full log first, then `seconds` of rows as they come; both into a table of its own."""
    with server.connect() as connection, tempfile.TemporaryDirectory() as folder:
        connection.execute("create table ends (id bigint primary key, text text, label text)")
        config = SourceConfig(kind="postgres", url=server.url, table="ends", key="id")
        source = PostgresSource(config, project="p", base=Path(), batch_rows=10_000)
        connection.execute(source.setup_sql)
        with closing(SqliteBroker(Path(folder) / "b.db", partitions=4)) as broker:
            collect(source, broker, topic="t", cancel=threading.Event())  # makes the slot
        fill(connection, 0, events, table="ends")
        path = Stretch(source, Path(folder))
        clock, cpu = time.perf_counter(), time.process_time()
        path.start()
        path.wait_for(events)
        report("log → table (in 1,000s)", events, clock, cpu)
        path.delays.clear()
        # A process of its own: a client that shares our interpreter would wait for it.
        feeder = get_context("spawn").Process(target=feed, args=(server.url, events, seconds))
        feeder.start()
        path.wait_for(events + 1)
        clock, cpu = time.perf_counter(), time.process_time()
        path.wait_for(events + PER_SECOND * seconds)
        feeder.join()
        report("as committed, 1,000/s asked", PER_SECOND * seconds, clock, cpu)
        path.stop()
        delays = sorted(path.delays)
        for share in (0.5, 0.95, 0.99):
            waited = delays[int(len(delays) * share)]
            print(f"  committed → visible, p{share * 100:.0f}: {waited:.3f} s")


def feed(url: str, first: int, seconds: int) -> None:
    """1,000 rows a second, ten a transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        begun = time.perf_counter()
        for start in range(0, PER_SECOND * seconds, PER_TRANSACTION):
            # Absolute moments: a slow commit does not make the rate lower.
            time.sleep(max(0.0, begun + start / PER_SECOND - time.perf_counter()))
            fill(connection, first + start, PER_TRANSACTION, table="ends", at_once=PER_TRANSACTION)


class Stretch:
    """A collector and a worker that do not wait for each other; the delay of each event."""

    def __init__(self, source: PostgresSource, folder: Path) -> None:
        self._source, self._folder = source, folder
        self._cancel, self._rows = threading.Event(), 0
        self._threads = [threading.Thread(target=work) for work in (self._collect, self._process)]
        self.delays: list[float] = []

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._cancel.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, rows: int) -> None:
        while self._rows < rows:
            assert all(thread.is_alive() for thread in self._threads)
            time.sleep(0.005)

    def _collect(self) -> None:
        with closing(SqliteBroker(self._folder / "b.db", partitions=4)) as broker:
            collect(self._source, broker, topic="t", cancel=self._cancel, follow=True)

    def _process(self) -> None:
        table = DeltaFeatureTable(
            self._folder / "table", project="p", key="id", text="text", label="label"
        )
        chain = ProcessorChain([RowProcessor(text="text", label="label", max_text_bytes=1_000_000)])
        with closing(SqliteBroker(self._folder / "b.db", partitions=4)) as broker:
            worker = Consumer(
                broker, table, chain, project="p", group="g", topic="t", batch_rows=10_000,
                on_commit=self._committed,
            )  # fmt: skip
            worker.follow(self._cancel, member="worker-0", lease=timedelta(seconds=10))

    def _committed(self, done: Committed) -> None:
        """By the moments at which the server says that it committed: one machine, one clock."""
        now = time.time()
        self._rows += done.rows
        assert isinstance(done.events, EventColumns)
        moments = done.events.table["_committed_at"].cast("int64").to_pylist()
        self.delays += [now - moment / 1e6 for moment in moments]


def fill(
    connection: Any, first: int, events: int, *, table: str = "rows", at_once: int = 1_000
) -> None:
    for start in range(first, first + events, at_once):
        connection.execute(
            f"insert into {table} select n, repeat(md5(n::text), 6), 'label'"
            f" from generate_series({start}, {start + at_once - 1}) n"
        )


def report(what: str, count: int, clock: float, cpu: float) -> None:
    wall, used = time.perf_counter() - clock, time.process_time() - cpu
    load = os.getloadavg()[0]
    print(
        f"{what:<28} {count:>8,} events  {count / wall:>8,.0f}/s wall"
        f"  {count / used:>8,.0f}/s of our CPU  (load {load:.1f})"
    )


if __name__ == "__main__":
    main()
