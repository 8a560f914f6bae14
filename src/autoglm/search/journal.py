"""Optuna's journal over our event log: the study lives in state.db and nowhere else.

`writing` is for the one process that runs the study; `reading` for everybody else, Optuna Dashboard
included: `optuna_dashboard.run_server(journal.reading(EventLog(project.reading_engine), run_id))`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from autoglm.contracts.record import to_json
from autoglm.errors import PluginError, StorageError
from autoglm.state.event_log import EventLog


def writing(log: EventLog, name: str) -> StudyStorage:
    """The storage of study `name` for the process that runs it; an older writer is fenced off."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return StudyStorage(OwnedJournal(log, stream_of(name)))


def reading(log: EventLog, name: str) -> JournalStorage:
    """The storage of study `name` for whoever looks at it, also while it is running. Writing to it
    raises StorageError.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return JournalStorage(ReadJournal(log, stream_of(name)))


def stream_of(name: str) -> str:
    return f"study/{name}"


class ReadJournal(BaseJournalBackend):  # type: ignore[misc]
    def __init__(self, log: EventLog, stream: str) -> None:
        self._log, self._stream = log, stream

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        for event in self._log.read(self._stream, after=log_number_from):
            yield dict(event.data)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise StorageError(
            f"{self._stream} is open for reading only.",
            code="storage.read_only",
            next_step="A study is written by the process that runs it.",
        )


class OwnedJournal(BaseJournalBackend):  # type: ignore[misc]
    """The journal of the stream's one writer: nobody else appends, so nothing is read twice.

    An entry is durable when `append_logs` returns, or, inside `batch`, when the batch ends.
    """

    def __init__(self, log: EventLog, stream: str) -> None:
        self._log, self._stream = log, stream
        self._fence = log.take(stream)
        self._entries = [dict(event.data) for event in log.read(stream)]
        self._pending: list[str] = []
        self._depth = 0

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        yield from self._entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        # As it will be read back after a kill: Optuna hands over enums and tuples.
        texts = [json.dumps(log, ensure_ascii=False, default=to_json) for log in logs]
        self._pending += texts
        self._entries += map(json.loads, texts)
        if not self._depth:
            self._flush()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """One commit for all that is appended inside; none of it if an error leaves the block,
        after which this journal must not be used any more.
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if not self._depth:
            self._flush()

    def _flush(self) -> None:
        """Raises: FencedError."""
        if self._pending:
            self._log.append_many(self._stream, "journal", self._pending, fence=self._fence)
            self._pending = []


class StudyStorage(JournalStorage):  # type: ignore[misc]
    """A trial that was paused is a finished one to the samplers, which learn nothing from running
    ones; Optuna has no word for it. `recorded` says how it is.
    """

    def __init__(self, journal: OwnedJournal) -> None:
        self.batch = journal.batch
        super().__init__(journal)

    def recorded(self, study_id: int) -> list[FrozenTrial]:
        found: list[FrozenTrial] = super().get_all_trials(study_id, deepcopy=False)
        return found

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        seen = [_as_learnt(trial) for trial in self.recorded(study_id)]
        found = [trial for trial in seen if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        _refuse_pickles(key)
        super().set_study_system_attr(study_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        _refuse_pickles(key)
        super().set_trial_system_attr(trial_id, key, value)


def _refuse_pickles(key: str) -> None:
    """What CMA-ES keeps, whoever calls it, is a pickle: nothing is unpickled here."""
    if key.startswith("cma:"):
        raise PluginError(
            "search.sampler is Optuna's CmaEsSampler, or has one inside, which keeps pickles in the"
            " study.",
            code="plugin.wrong_answer",
            next_step="Take another one, as optuna.samplers.GPSampler(seed=seed).",
        )


def _as_learnt(trial: FrozenTrial) -> FrozenTrial:
    if trial.state != TrialState.RUNNING or not trial.intermediate_values:
        return trial
    paused = copy.copy(trial)
    paused.state = TrialState.PRUNED
    return paused
