"""Runs that survive kill -9: the only file that knows the workflow engine.

Each run is one DBOS workflow on `runs.db`, its steps addressed by position. A step's body may run
again after a crash; what it returned is recorded once. Exactly one process per project opens this
(the project's lock sees to it), so a restart is the takeover.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event

from autoglm.errors import AutoGLMError, CancelledError, from_system
from autoglm.observability.logging import get_logger

Step = Callable[[str, Callable[[], Any]], Any]
Body = Callable[[str, Step], Mapping[str, Any]]

# Steps are addressed by position: a change of their order needs another shape.
RUN_SHAPE = "run-shape-2"
EXECUTOR = "autoglm-control"
# How often the end of a run is asked for.
POLL_SECONDS = 0.1
_body: Body | None = None
_workflow: Any = None
_parked = threading.Event()


class StepFailedError(Exception):
    """Carries a recorded failure from a step to the end of its run."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", "")))
        self.error = error


class DurableRuns:
    """The workflow engine of one project, between `open` and `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, body: Body) -> None:
        """Launch; unfinished runs of an earlier process go on in the background at once."""
        global _body, _workflow
        from dbos import DBOS, DBOSConfig, run_dbos_database_migrations
        from dbos._serialization import DBOSPortableJSON

        # The library warns about every resumed run, and prints the traceback of what `wait` raises.
        logging.getLogger("dbos").setLevel(logging.CRITICAL)
        url = f"sqlite:///{self._path}"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        run_dbos_database_migrations(system_database_url=url)
        _body = body
        config = DBOSConfig(
            name="autoglm",
            system_database_url=url,
            system_database_engine=_engine(url),
            executor_id=EXECUTOR,
            application_version=RUN_SHAPE,
            run_migrations=False,
            serializer=DBOSPortableJSON,
            enable_otlp=False,
            log_level="CRITICAL",
            console_log_level="CRITICAL",
            # Nothing is sent by its notifications, so a look costs nothing; but the end of the
            # process waits for the last one.
            notification_listener_polling_interval_sec=POLL_SECONDS,
            scheduler_polling_interval_sec=60.0,
        )
        DBOS(config=config)
        if _workflow is None:
            _workflow = DBOS.workflow(name="run")(_run)
        DBOS.launch()

    def wait(self, run_id: str) -> Mapping[str, Any]:
        """Start run `run_id` unless it was started before; block until its result is recorded.

        Raises: CancelledError when the run was parked by `cancel` (it can be resumed).
        """
        from dbos import DBOS, SetWorkflowID

        status = DBOS.get_workflow_status(run_id)
        if status is None:
            with SetWorkflowID(run_id):
                handle = DBOS.start_workflow(_workflow, run_id)
        else:
            handle = DBOS.retrieve_workflow(run_id)
        result: dict[str, Any] = {}

        def fetch() -> None:
            try:
                result["value"] = handle.get_result(polling_interval_sec=POLL_SECONDS)
            except Exception as error:  # the engine could not record: a full disk, mostly
                result["error"] = error
            done.set()

        done = threading.Event()
        threading.Thread(target=fetch, daemon=True, name=f"wait-{run_id}").start()
        while not done.wait(POLL_SECONDS):
            if _parked.is_set():
                raise CancelledError(
                    f"run {run_id} was stopped.",
                    next_step=f"`autoglm runs resume {run_id}` goes on where it was.",
                )
        if "error" in result:
            raise result["error"]
        value: Mapping[str, Any] = result["value"]
        return value

    def forget(self, run_id: str) -> None:
        """Cancel a run that should not be resumed."""
        from dbos import DBOS

        if DBOS.get_workflow_status(run_id) is not None:
            DBOS.cancel_workflow(run_id)

    def close(self) -> None:
        from dbos import DBOS

        DBOS.destroy()


def _run(run_id: str) -> Mapping[str, Any]:
    assert _body is not None, "DurableRuns.open sets the body before it launches"
    try:
        return _body(run_id, step)
    except StepFailedError as failed:
        return {"status": "failed", "error": dict(failed.error)}


def step(name: str, work: Callable[[], Any]) -> Any:
    """Run `work` as the next step, or return what it returned when it ran before.

    A typed failure is recorded like a result, so that a replay fails alike; a cancelled step is
    never recorded: its thread stays here until the process ends, and the run can be resumed.
    """
    from dbos import DBOS

    outcome = DBOS.run_step({"name": name}, _guarded, name, work)
    if "error" in outcome:
        raise StepFailedError(outcome["error"])
    return outcome["value"]


def _guarded(name: str, work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": work()}
    except CancelledError:
        _parked.set()
        threading.Event().wait()
        raise AssertionError("unreachable") from None
    except AutoGLMError as caught:
        # What nobody foresaw in the training worker may be a full disk, told in a library's words.
        full = from_system(caught) if caught.code == "training.broken" else None
        error = full or caught
        get_logger().warning("step failed", step=name, error_code=error.code, cause=error.message)
        return {"error": {**error.to_json(), "step": name}}
    except Exception as error:
        known = from_system(error)
        if known is not None:
            return {"error": {**known.to_json(), "step": name}}
        get_logger().exception("step broke", step=name)
        message = f"{type(error).__name__}: {error}"
        return {
            "error": {
                "code": "run.broken",
                "message": message,
                "next_step": "The log has the traceback; please report it.",
                "retryable": False,
                "step": name,
            }
        }


def _engine(url: str) -> Engine:
    """WAL and BEGIN IMMEDIATE: with the engine's own settings, counts are read outside the lock."""
    engine = create_engine(url, connect_args={"timeout": 30, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=wal", "synchronous=full", "foreign_keys=on"):
            connection.execute(f"pragma {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        connection.exec_driver_sql("begin immediate")

    return engine
