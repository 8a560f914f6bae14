"""A member of a group that processes until it is told to end, or is killed or stopped by the test."""

from __future__ import annotations

import os
import sys
import threading
from datetime import timedelta
from pathlib import Path

from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.consumer_group import Consumer
from autoglm.streaming.processor import ProcessorChain, RowProcessor


def work(folder: Path, lease: float, cancel: threading.Event, *, batch_rows: int = 25) -> None:
    broker = SqliteBroker(folder / "broker.db", partitions=4)
    table = DeltaFeatureTable(folder / "table", project="p", key="id", text="text", label="label")
    processor = ProcessorChain([RowProcessor(text="text", label="label", max_text_bytes=10_000)])
    consumer = Consumer(
        broker, table, processor, project="p", group="g", topic="t", batch_rows=batch_rows
    )
    consumer.follow(cancel, member=f"m{os.getpid()}", lease=timedelta(seconds=lease))
    broker.close()


if __name__ == "__main__":
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    work(Path(sys.argv[1]), float(sys.argv[2]), ended)
