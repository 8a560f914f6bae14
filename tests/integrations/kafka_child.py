"""Collects into a Kafka topic and drains it into the table, once; the test kills it where it likes."""

from __future__ import annotations

import sys
import threading
from contextlib import closing
from pathlib import Path

from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.errors import AutoGLMError, FencedError
from autoglm.integrations.kafka import KafkaBroker
from autoglm.streaming.collector import collect
from autoglm.streaming.collectors.sql_poll import SqlPollSource
from autoglm.streaming.config import BrokerConfig, SourceConfig
from autoglm.streaming.consumer_group import Consumer
from autoglm.streaming.processor import RowProcessor

# How a zombie ends: as one that was replaced, or by what the broker said instead.
FENCED, REFUSED = 3, 4


def trip(folder: Path, address: str) -> None:
    source = SqlPollSource(
        SourceConfig(url="sqlite:///source.db", table="rows", key="id", cursor="changed_at"),
        project="p",
        base=folder,
        batch_rows=40,
    )
    config = BrokerConfig(kind="kafka", bootstrap=address)
    table = DeltaFeatureTable(folder / "table", project="p", key="id", text="text", label="label")
    processor = RowProcessor(text="text", label="label", max_text_bytes=1000)
    with closing(KafkaBroker(config, project=folder.name, partitions=3)) as broker:
        topic = f"rows-{folder.name}"
        consumer = Consumer(
            broker, table, processor, project="p", group="g", topic=topic, batch_rows=50
        )
        collect(source, broker, topic=topic, cancel=threading.Event())
        consumer.drain(threading.Event())


if __name__ == "__main__":
    try:
        trip(Path(sys.argv[1]), sys.argv[2])
    except AutoGLMError as error:
        print(error, file=sys.stderr)
        sys.exit(FENCED if isinstance(error, FencedError) else REFUSED)
