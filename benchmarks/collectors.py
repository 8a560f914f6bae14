"""How fast a collector alone is: PostgreSQL's log → change events, and on into the broker.

    python -m benchmarks.collectors [--events 100000]

Starts a PostgreSQL of its own; rows of about 200 bytes in transactions of 1,000, written before the
clock starts, so that the server decodes on the same cores while we read.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from autoglm.integrations.postgres import PostgresSource  # noqa: E402
from autoglm.streaming.broker import SqliteBroker  # noqa: E402
from autoglm.streaming.collector import collect  # noqa: E402
from autoglm.streaming.config import SourceConfig  # noqa: E402
from servers import Postgres  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=100_000)
    events = parser.parse_args().events
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
    finally:
        server.remove()


def fill(connection: Any, first: int, events: int) -> None:
    for start in range(first, first + events, 1_000):
        connection.execute(
            "insert into rows select n, repeat(md5(n::text), 6), 'label'"
            f" from generate_series({start}, {start + 999}) n"
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
