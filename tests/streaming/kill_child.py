"""Collects and drains once; the test kills it wherever the fail point says."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.collector import collect
from autoglm.streaming.collectors.sql_poll import SqlPollSource
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.consumer_group import Consumer
from autoglm.streaming.processor import RowProcessor


def trip(folder: Path, cursor: str) -> None:
    config = SourceConfig(url="sqlite:///source.db", table="rows", key="id", cursor=cursor)
    source = SqlPollSource(config, project="p", base=folder, batch_rows=40)
    broker = SqliteBroker(folder / "broker.db", partitions=3)
    table = DeltaFeatureTable(folder / "table", project="p", key="id", text="text", label="label")
    processor = RowProcessor(text="text", label="label", max_text_bytes=1000)
    consumer = Consumer(broker, table, processor, project="p", group="g", topic="t", batch_rows=50)
    collect(source, broker, topic="t", cancel=threading.Event())
    consumer.drain(threading.Event())
    broker.close()


if __name__ == "__main__":
    trip(Path(sys.argv[1]), sys.argv[2])
