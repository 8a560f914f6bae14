"""Listens to a table until nothing more is there; the test kills it at a fail point."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from autoglm.integrations.postgres import PostgresSource
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.collector import collect
from autoglm.streaming.config import SourceConfig


def listen(url: str, table: str, broker_file: Path) -> None:
    config = SourceConfig(kind="postgres", url=url, table=table, key="id")
    source = PostgresSource(config, project="p", base=Path(), batch_rows=30)
    broker = SqliteBroker(broker_file, partitions=2)
    collect(source, broker, topic="t", cancel=threading.Event())
    broker.close()


if __name__ == "__main__":
    listen(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
