"""Optuna's journal over our event log: the study lives in state.db and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from autoglm.state.event_log import EventLog


class EventLogJournal(BaseJournalBackend):  # type: ignore[misc]
    """One stream per study; a log entry is durable when `append_logs` returns."""

    def __init__(self, log: EventLog, stream: str) -> None:
        self._log, self._stream = log, stream

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        for event in self._log.read(self._stream, after=log_number_from):
            yield dict(event.data)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._log.append_many(self._stream, "journal", logs)
