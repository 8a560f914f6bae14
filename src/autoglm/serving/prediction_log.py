"""telemetry.db: every answer as a record, written behind the request's back. May be deleted."""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
from pathlib import Path

from autoglm.contracts.feedback import Feedback
from autoglm.contracts.prediction import Prediction
from autoglm.contracts.record import to_json
from autoglm.observability.logging import get_logger

MAX_WAITING = 10_000
_SCHEMA = """
create table if not exists prediction (request_id text primary key, version text, record text);
create table if not exists feedback (request_id text primary key, record text);
"""


class PredictionLog:
    """Never blocks and never fails a request: what does not fit is counted in `num_dropped`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.Queue[Prediction | Feedback | None] = queue.Queue(MAX_WAITING)
        self.num_dropped = 0
        self._thread = threading.Thread(target=self._write, daemon=True, name="prediction-log")
        self._thread.start()

    def add(self, record: Prediction | Feedback) -> None:
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.num_dropped += 1

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(10)

    def _write(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=30)
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=normal")
        connection.executescript(_SCHEMA)
        is_open = True
        while is_open:
            batch = [self._queue.get()]
            while not self._queue.empty() and len(batch) < 500:
                batch.append(self._queue.get_nowait())
            is_open = None not in batch
            try:
                self._store(connection, [record for record in batch if record is not None])
            except Exception as error:  # one bad record must not end the log
                if connection.in_transaction:
                    connection.rollback()
                self.num_dropped += len(batch)
                get_logger().warning("predictions were not kept", cause=str(error))
        connection.close()

    def _store(self, connection: sqlite3.Connection, records: list[Prediction | Feedback]) -> None:
        connection.execute("begin")
        for record in records:
            text = json.dumps(to_json(record))
            if isinstance(record, Prediction):
                connection.execute(
                    "insert or replace into prediction values (?, ?, ?)",
                    (record.request_id, record.model_version, text),
                )
            else:
                connection.execute(
                    "insert or replace into feedback values (?, ?)", (record.request_id, text)
                )
        connection.execute("commit")
