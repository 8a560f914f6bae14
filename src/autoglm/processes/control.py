"""The `control` process: API, triggers, runs, rollout controller. Loads no torch."""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import threading
import uuid
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm.config.live import LiveConfig
from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.record import digest, from_json
from autoglm.contracts.trigger_event import Decision, TriggerKind
from autoglm.errors import AutoGLMError, CancelledError, ConfigError, ReleaseError
from autoglm.loop.app import App, GatewayAddress
from autoglm.loop.candidate_to_release import reconcile
from autoglm.loop.dataset_to_run import data_cause, dataset_to_run, trigger_event
from autoglm.loop.names import judge
from autoglm.loop.run_loop import finish, open_runs, unchanged
from autoglm.observability import logging as logs
from autoglm.processes.lifeline import watch
from autoglm.project import Project
from autoglm.settings import Settings
from autoglm.triggers.cron import missed_tick
from autoglm.triggers.data_changed import Debounce, newest_version

if TYPE_CHECKING:
    from autoglm.datasets.feature_table import DeltaFeatureTable

TICK_SECONDS = 1.0
RECONCILE_SECONDS = 5.0
PROGRESS_KEPT = 2000
_current: Control | None = None


class Control:
    """Admits runs from three triggers and makes them one after the other."""

    def __init__(self, project: Project, gateway: GatewayAddress) -> None:
        self.project, self.gateway = project, gateway
        self.app = App(project=project, on_event=self._on_event, replay=False, gateway=gateway)
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._progress: deque[tuple[int, Mapping[str, Any]]] = deque(maxlen=PROGRESS_KEPT)
        self._num_events = 0
        self._lock = threading.Lock()
        self._admitting = threading.Lock()
        self._logger = logs.get_logger()
        self.run_error = self.trigger_error = self.config_error = ""
        self._live: LiveConfig[Settings] | None = None
        self._table: DeltaFeatureTable | None = None

    def start(self) -> None:
        self._live = self.project.follow(
            on_change=self._on_config,
            alarm=self._on_bad_config,
            judge=judge(self.project.layers),
        )
        self._runs = open_runs(self.app)
        for run_id in self.app.admission.unfinished():
            self._queue.put(run_id)
        threading.Thread(target=self._make_runs, daemon=True, name="runs").start()
        threading.Thread(target=self._watch_triggers, daemon=True, name="triggers").start()

    def _on_config(self, keys: list[str]) -> None:
        self.config_error = ""
        self._logger.info("configuration changed", keys=keys)

    def _on_bad_config(self, error: ConfigError) -> None:
        self.config_error = str(error)
        self._logger.error("configuration refused", error_code=error.code, cause=error.message)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self.app.cancel.set()
        self.app.close()

    def trigger(
        self,
        *,
        reason: str,
        only_if_changed: bool = False,
        idempotency_key: str = "",
        dry_run: bool = False,
        traceparent: str = "",
    ) -> tuple[Decision, DatasetVersion]:
        """Admit a run by hand. The same key is the same request.

        Raises: DataError when there is nothing to learn from yet.
        """
        dataset = self._describe()
        by_data = data_cause(dataset, self.app) if only_if_changed else ""
        cause = by_data or digest("manual", idempotency_key or uuid.uuid4().hex)
        if dry_run:
            return Decision(
                project=self.project.name,
                outcome="waiting",
                run_id="",
                cause=cause,
                reason="dry run",
            ), dataset
        kind: TriggerKind = "command" if by_data else "manual"
        return self._admit(kind, cause, reason, dataset, traceparent), dataset

    def progress(self, run_id: str, after: int) -> tuple[list[Mapping[str, Any]], int]:
        """Live events of a run since number `after`, and the number to ask from next."""
        with self._lock:
            events = [e for n, e in self._progress if n > after and e.get("of") == run_id]
            return events, self._num_events

    def _admit(
        self,
        kind: TriggerKind,
        cause: str,
        reason: str,
        dataset: DatasetVersion,
        traceparent: str = "",
    ) -> Decision:
        with self._admitting:
            event = trigger_event(
                self.app, kind, cause=cause, reason=reason, traceparent=traceparent
            )
            decision = dataset_to_run(event, dataset, self.app)
        self._logger.info("admission", outcome=decision.outcome, run_id=decision.run_id, by=kind)
        if decision.outcome == "admitted":
            self._queue.put(decision.run_id)
        return decision

    def _describe(self) -> DatasetVersion:
        document = self.app.errand("describe", project=self.project.arguments)
        return from_json(DatasetVersion, document)

    def unchanged_result(self, dataset: DatasetVersion, decision: Decision) -> dict[str, Any]:
        return unchanged(dataset, decision)

    def _on_event(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            self._num_events += 1
            self._progress.append((self._num_events, {**event, "of": self.running}))

    running = ""
    _reconciled = 0.0

    def _make_runs(self) -> None:
        while True:
            self.running = self._queue.get()
            try:
                result = finish(self.running, self.app, self._runs)
                error = result.get("error")
                self.run_error = f"{error['code']}: {error['message']}" if error else ""
            except CancelledError:
                return
            except Exception:
                self._logger.exception("a run could not be made", run_id=self.running)
            self.running = ""

    def _watch_triggers(self) -> None:
        rows = self.app.admission.rows()
        seen = from_json(DatasetVersion, rows[0]["run_spec"]["dataset"]).version if rows else -1
        debounce = Debounce(self.project.settings.trigger.debounce, seen=seen)
        # A tick that fell while we were down is made up for; without any run, nothing is owed.
        last_tick = max((datetime.fromisoformat(r["at"]) for r in rows), default=datetime.now(UTC))
        while not self.app.cancel.wait(TICK_SECONDS):
            try:
                trigger = self.project.settings.trigger
                debounce.quiet = trigger.debounce
                version = self._table_version()
                now = self.app.clock.monotonic()
                if trigger.data_changed and debounce.ready(version, now):
                    debounce.handled(version)
                    self._on_data_changed(version)
                self._reconcile(now)
                if trigger.cron:
                    last_tick = self._on_tick(last_tick)
                self.trigger_error = ""
            except AutoGLMError as error:
                self.trigger_error = str(error)
                self._logger.warning("trigger failed", error_code=error.code, cause=error.message)
            except Exception:
                self._logger.exception("trigger broke")

    def _table_version(self) -> int:
        """The newest, at a store too. Raises: StorageError."""
        if not self.project.settings.storage.table:  # asked each second, so without an engine
            return newest_version(self.project.state / "table")
        if self._table is None:
            self._table = self.project.table()
        return self._table.version

    def _reconcile(self, now: float) -> None:
        """Every few seconds while no run is made or waits."""
        if self.running or not self._queue.empty() or now - self._reconciled < RECONCILE_SECONDS:
            return
        self._reconciled = now
        try:
            if reconcile(self.app):
                self._logger.warning("routes were not those of stable; set right")
        except ReleaseError as error:
            self._logger.warning("routes cannot be compared", cause=error.message)

    def _on_data_changed(self, version: int) -> None:
        dataset = self._describe()
        stable = self.app.registry.resolve("stable")
        grown = abs(dataset.rows - (stable.lineage.dataset_rows if stable else 0))
        if stable and 0 < grown < self.project.settings.trigger.min_rows:
            return
        cause = data_cause(dataset, self.app)
        self._admit("data_changed", cause, f"feature table version {version}", dataset)

    def _on_tick(self, last: datetime) -> datetime:
        trigger, now = self.project.settings.trigger, datetime.now(UTC)
        due = missed_tick(trigger.cron, trigger.time_zone, last, now)
        if due is not None:
            cause = digest("cron", trigger.cron, due)
            self._admit("cron", cause, f"cron {trigger.cron}", self._describe())
        return now


def current() -> Control:
    """The process's own control, for the API that uvicorn makes by name."""
    assert _current is not None, "main sets it before the server starts"
    return _current


def main() -> None:
    global _current
    parser = argparse.ArgumentParser()
    Project.add_arguments(parser)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--admin-socket", required=True)
    arguments = parser.parse_args()
    project = Project.from_arguments(arguments)
    logs.configure("control", project=project.name, folder=project.logs)
    gateway = GatewayAddress(address=arguments.address, admin_socket=Path(arguments.admin_socket))
    _current = Control(project, gateway)
    _current.start()
    _serve(arguments.socket, _current)


def _serve(socket_path: str, control: Control) -> None:
    import uvicorn

    # By name: the API stands above the processes and may not be imported from here.
    config = uvicorn.Config(
        "autoglm.api.app:create_app",
        factory=True,
        uds=socket_path,
        log_config=None,
        access_log=False,
    )
    server = uvicorn.Server(config)

    def leave() -> None:
        server.should_exit = True

    watch(leave)
    Path(socket_path).unlink(missing_ok=True)
    asyncio.run(server.serve())
    control.stop()
    # A parked run's thread never returns; nothing of it may be recorded.
    os._exit(0)


if __name__ == "__main__":
    # Under `-m` this file is `__main__`; the API imports it by its name and must meet the same one.
    from autoglm.processes.control import main as entry

    entry()
