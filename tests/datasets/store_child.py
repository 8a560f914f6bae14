"""Writes to a table at a store, in a process of its own: store_child.py ADDRESS URL COMMITS TOPIC.

Rows are `TOPIC-OFFSET`, ten a commit; it goes on where the table stands, as a consumer does, and
says how often it was refused.
"""

from __future__ import annotations

import sys

from autoglm.contracts.change_event import OffsetRange, Partition
from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.datasets.table_store import connect_table
from autoglm.errors import FencedError
from feature_tables import made
from s3_server import KEYS

BATCH = 10


def write(table: DeltaFeatureTable, topic: str, commits: int) -> int:
    partition, refused, end = Partition(group="g", topic=topic, number=0), 0, commits * BATCH
    while (start := table.next_offset(partition)) < end:
        events = [made(f"{topic}-{n}", n, text=f"text {n}") for n in range(start, start + BATCH)]
        try:
            table.commit(
                events,
                [],
                {partition: OffsetRange(start=start, end=start + BATCH)},
                positions={topic: str(start + BATCH)},
                traceparent="",
            )
        except FencedError:
            refused += 1
    return refused


if __name__ == "__main__":
    address, url, commits, topic = sys.argv[1:]
    connect_table(address, {"endpoint_url": url, **KEYS})
    table = DeltaFeatureTable(address, project="p", key="id", text="text", label="label")
    print(write(table, topic, int(commits)))
