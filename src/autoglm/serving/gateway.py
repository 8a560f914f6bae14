"""The gateway: predictions for users, routes and blocks for control, the rest passed on.

It routes and measures, never judges. The route table is absolute, has a generation that only
grows, lies on disk, and is applied again when the gateway comes back.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoglm.contracts.feedback import Feedback
from autoglm.contracts.prediction import Prediction
from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.rollout import RouteTable
from autoglm.contracts.task import TASKS, TaskForm, answer_from_json
from autoglm.errors import ConflictError, DataError, ServingError
from autoglm.observability.logging import get_logger
from autoglm.observability.tracing import new_traceparent, trace_id_of
from autoglm.serving.config import ServingConfig
from autoglm.serving.prediction_log import PredictionLog
from autoglm.serving.router import choose
from autoglm.serving.signals import Signals
from autoglm.serving.worker_pool import Worker

# So many candidate failures in a row close the way to it, without asking anybody.
FUSE_ERRORS = 20


class Gateway:
    """State of one gateway process; `gateway_app` puts HTTP around it."""

    def __init__(
        self, *, project: str, state: Path, sockets: Path, logs: Path, config: ServingConfig
    ) -> None:
        self.project, self.config = project, config
        self._state, self._sockets, self._logs = state, sockets, logs
        self._file = state / "routes.json"
        self.routes: RouteTable | None = None
        self._workers: dict[str, Worker] = {}
        self._forms: dict[str, TaskForm] = {}
        self.signals = Signals(project, state)
        self._log = PredictionLog(state / "telemetry.db")
        self._applying = asyncio.Lock()
        self._errors_in_a_row = 0
        self._logger = get_logger()
        self._leaving: set[asyncio.Task[None]] = set()

    async def restore(self) -> None:
        """Apply the table on disk, if there is one: control may be dead."""
        if self._file.exists():
            table = from_json(RouteTable, json.loads(self._file.read_text()))
            folders = {digest: self._moved(folder) for digest, folder in table.folders.items()}
            table = replace(table, folders=folders)
            try:
                await self._apply(table)
            except ServingError as error:
                self._logger.error("stored routes cannot be served", cause=str(error))

    def _moved(self, folder: str) -> str:
        """Where a model folder is now: the project may have been moved since."""
        here = self._state / "models" / Path(folder).name
        return str(here) if here.is_dir() else folder

    async def set_routes(self, table: RouteTable) -> None:
        """Warm what is named, swap, write down, drain what is not named any more.

        Raises: ConflictError for an older generation, ServingError when a version is not servable
        (the old table stays in force).
        """
        async with self._applying:
            if self.routes is not None and table.generation <= self.routes.generation:
                raise ConflictError(
                    f"generation {table.generation} is not newer than {self.routes.generation}."
                )
            await self._apply(table)
            _write_durably(self._file, json.dumps(to_json(table)))

    async def _apply(self, table: RouteTable) -> None:
        named = [digest for digest in (table.stable, table.candidate) if digest]
        for digest in named:
            if digest not in self._workers:
                worker = Worker(
                    table.folders[digest],
                    sockets=self._sockets,
                    config=self.config,
                    project=self.project,
                    logs=self._logs,
                )
                await worker.start()
                self._workers[digest] = worker
                self._forms[digest] = _form_of(Path(table.folders[digest]))
        self.routes = table
        self._errors_in_a_row = 0
        self.signals.restart(table)
        self._logger.info(
            "routes applied", generation=table.generation, weight=table.candidate_weight
        )
        for digest in [d for d in self._workers if d not in named]:
            task = asyncio.create_task(self._workers.pop(digest).stop())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    @property
    def is_ready(self) -> bool:
        worker = self._workers.get(self.routes.stable) if self.routes else None
        return worker is not None and worker.is_warm

    async def predict(
        self, inputs: list[Any], *, override: str, key: str, is_replayed: bool, traceparent: str
    ) -> tuple[str, str, str, list[dict[str, Any]]]:
        """(request id, version, model trace, answers) of texts or lists of tokens. One retry on
        stable if the candidate fails.

        Raises: ServingError serving.no_model, serving.unknown_version, or the last failure;
        DataError for inputs at fault, which no version is blamed for.
        """
        routes = self.routes
        if routes is None or not routes.stable:
            raise ServingError(
                "there is no model version to answer.",
                code="serving.no_model",
                next_step="The first `run` makes one.",
            )
        version = choose(routes, override=override, key=key, chance=random.random())  # noqa: S311
        if version is None:
            raise ServingError(
                f"no version {override!r} is served.", code="serving.unknown_version"
            )
        request_id = os.urandom(8).hex()
        started, is_retried = time.perf_counter(), False
        deadline = started + self.config.timeout.total_seconds()
        try:
            answers = await self._ask(version, inputs, deadline)
        except ServingError as error:
            self._failed(version, error)
            if version == routes.stable and error.code != "serving.worker_died":
                raise
            version, is_retried = routes.stable, True
            started = time.perf_counter()  # the candidate's time is not stable's latency
            answers = await self._ask(version, inputs, deadline)
        seconds = time.perf_counter() - started
        if version != routes.stable:
            self._errors_in_a_row = 0
        said = answer_from_json(answers[0]["label"], self._forms[version])
        self.signals.answered(version, seconds, request_id, said)
        trace = routes.traces.get(version, "")
        self._log.add(
            Prediction(
                project=self.project,
                request_id=request_id,
                model_version=version,
                label=answers[0]["label"],
                score=answers[0]["score"],
                status=200,
                latency_ms=seconds * 1000,
                text_digest=hashlib.blake2b(
                    _as_text(inputs[0]).encode("utf-8", "replace"), digest_size=8
                ).hexdigest(),
                is_replayed=is_replayed,
                is_retried=is_retried,
                trace_id=trace_id_of(traceparent),
                model_trace_id=trace,
                answered_at=datetime.now(UTC),
            )
        )
        return request_id, version, trace, answers

    def feedback(self, request_id: str, label: Any) -> None:
        """Raises: DataError data.bad_answer when the request was answered in another form."""
        answered = self.signals.answer_to(request_id)
        if answered is not None:
            version, said = answered
            self.signals.labelled(request_id, _read(label, said, self._forms[version]))
        self._log.add(
            Feedback(
                project=self.project,
                request_id=request_id,
                label=label,
                received_at=datetime.now(UTC),
            )
        )

    async def close(self) -> None:
        for worker in self._workers.values():
            await worker.stop()
        self._log.close()

    async def _ask(self, version: str, inputs: list[Any], deadline: float) -> list[dict[str, Any]]:
        worker = self._workers.get(version)
        if worker is None:
            raise ServingError("the version is leaving.", code="serving.worker_died")
        # The first try may take half of the time: the retry needs its own.
        is_candidate = self.routes is not None and version == self.routes.candidate
        left = max(0.01, deadline - time.perf_counter())
        return await worker.ask(inputs, left / 2 if is_candidate else left)

    def _failed(self, version: str, error: ServingError) -> None:
        self.signals.failed(version, error.code)
        self._logger.warning("a worker failed", version=version[:12], cause=str(error))
        routes = self.routes
        if routes is not None and version == routes.candidate:
            self._errors_in_a_row += 1
            if self._errors_in_a_row >= FUSE_ERRORS and routes.candidate_weight:
                # Only towards stable; the generation stays, so control's next table is newer.
                self.routes = replace(routes, candidate_weight=0)
                self._logger.error("fuse: candidate taken out", version=version[:12])


def _form_of(folder: Path) -> TaskForm:
    facts = json.loads((folder / "autoglm.json").read_text(encoding="utf-8"))
    return TASKS[facts.get("task", "text-classification")]


def _read(label: Any, said: Any, form: TaskForm) -> Any:
    """A true answer in the form of what was said. Raises: DataError data.bad_answer."""
    try:
        true = answer_from_json(label, form)
    except ValueError as error:
        cause = str(error)
    else:
        if form.answers != "tags" or len(true) == len(said):
            return true
        cause = f"{len(said)} tokens were answered, but {len(true)} tags are given"
    raise DataError(
        f"{cause}.",
        code="data.bad_answer",
        next_step="Give the true answer as the prediction's label has it.",
    )


def _as_text(one: Any) -> str:
    return one if isinstance(one, str) else " ".join(one)


def _write_durably(path: Path, content: str) -> None:
    staging = path.with_name(f".{path.name}.part")
    with staging.open("w") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    staging.replace(path)


def request_trace(header: str) -> str:
    """The request's trace if it brought one, else a new one."""
    return header if trace_id_of(header) else new_traceparent()
