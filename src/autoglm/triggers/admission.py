"""The one door for runs. The decision row is written first; the workflow starts under its id.

same cause, run lives or succeeded    → known / unchanged, no new run
data that was something else since    → admitted again, as the next attempt
same cause, run failed or was stopped → admitted again, as the next attempt
new cause                             → admitted
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Engine, text

from autoglm import fail_points
from autoglm.contracts.record import digest, from_json, to_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.trigger_event import Decision, TriggerEvent
from autoglm.errors import StorageError

_before_commit = fail_points.declare("hop7.before_commit", "a run's row is written, not committed")
_after_commit = fail_points.declare("hop7.after_commit", "a run is admitted, nobody has begun it")
Status = Literal["admitted", "running", "succeeded", "failed", "cancelled"]
UNFINISHED = ("admitted", "running")
# Triggers whose cause is the data: the same cause may come back.
BY_DATA = ("data_changed", "command")


def at_home(spec: RunSpec, home: Path) -> RunSpec:
    """A spec of a project that was moved, or copied, since: its workspace and its table are those
    that lie under `home`, not those that it was made with.
    """
    then = Path(spec.folder).parent.parent  # STATE/runs/RUN

    def now(place: str) -> str:
        is_inside = Path(place).is_relative_to(then)
        return str(home / Path(place).relative_to(then)) if is_inside else place

    return replace(
        spec, folder=now(spec.folder), dataset=replace(spec.dataset, uri=now(spec.dataset.uri))
    )


class Admission:
    """Sole writer of the table `admission`, which is also the list of runs. `home` is where the
    project keeps its state now.
    """

    def __init__(self, engine: Engine, home: Path) -> None:
        self._engine, self.home = engine, home

    def decide(self, event: TriggerEvent, make_spec: Callable[[str], RunSpec]) -> Decision:
        """Admit a run for `event.cause`, or find the one it has. Atomic: same cause, one run.

        `make_spec(run_id)` must do no work that could not be thrown away.
        """
        with self._engine.begin() as connection:
            attempt, found = self._find(connection, event)
            if found is not None:
                return found
            cause = f"{event.cause}#{attempt + 1}"
            run_id = f"run-{digest(event.project, cause, size=6)}"
            spec = make_spec(run_id)
            connection.execute(
                text(
                    "insert into admission (cause, run_id, outcome, reason, trigger_event,"
                    " run_spec, status, at) values (:cause, :run_id, 'admitted', :reason,"
                    " :event, :spec, 'admitted', :at)"
                ),
                {
                    "cause": cause,
                    "run_id": run_id,
                    "reason": event.reason,
                    "event": json.dumps(to_json(event)),
                    "spec": json.dumps(to_json(spec)),
                    "at": datetime.now(UTC).isoformat(),
                },
            )
            _before_commit()
        _after_commit()
        return self._decision(event, "admitted", run_id, event.reason)

    def find(self, event: TriggerEvent) -> Decision | None:
        """What `decide` would answer without a new run; None when it would admit one."""
        with self._engine.begin() as connection:
            return self._find(connection, event)[1]

    def _find(self, connection: Connection, event: TriggerEvent) -> tuple[int, Decision | None]:
        attempt, run_id, status = self._latest(connection, event.cause)
        if run_id and status in UNFINISHED:
            return attempt, self._decision(event, "known", run_id, f"run {run_id} is {status}")
        if run_id and status == "succeeded" and self._is_newest(connection, event, run_id):
            reason = f"run {run_id} did this already"
            return attempt, self._decision(event, "unchanged", run_id, reason)
        return attempt, None

    def _is_newest(self, connection: Connection, event: TriggerEvent, run_id: str) -> bool:
        """Whether what is in service comes of this cause. Rows that were changed and changed back
        are a change again; a request by hand or by the clock is one request for ever.
        """
        if event.trigger not in BY_DATA:
            return True
        rows = connection.execute(
            text(
                "select run_id, run_spec from admission where status = 'succeeded'"
                " order by at, rowid"
            )
        ).all()
        specs = {name: json.loads(spec) for name, spec in rows}
        newest, known = specs[rows[-1][0]], specs[run_id]
        same_rows = newest["dataset"]["content_digest"] == known["dataset"]["content_digest"]
        return same_rows and bool(newest["config_digest"] == known["config_digest"])

    def _latest(self, connection: Connection, cause: str) -> tuple[int, str, str]:
        rows = connection.execute(
            text("select run_id, status from admission where cause like :like order by at, rowid"),
            {"like": f"{cause}#%"},
        ).all()
        return (len(rows), rows[-1][0], rows[-1][1]) if rows else (0, "", "")

    def _decision(
        self,
        event: TriggerEvent,
        outcome: Literal["admitted", "known", "unchanged"],
        run_id: str,
        reason: str,
    ) -> Decision:
        return Decision(
            project=event.project, outcome=outcome, run_id=run_id, cause=event.cause, reason=reason
        )

    def set_status(self, run_id: str, status: Status) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                text("update admission set status = :status where run_id = :run_id"),
                {"status": status, "run_id": run_id},
            )

    def spec(self, run_id: str) -> RunSpec:
        """Raises: StorageError run.unknown."""
        return at_home(from_json(RunSpec, self.row(run_id)["run_spec"]), self.home)

    def row(self, run_id: str) -> Mapping[str, Any]:
        """Raises: StorageError run.unknown."""
        for row in self.rows():
            if row["run_id"] == run_id:
                return row
        raise StorageError(
            f"there is no run {run_id}.", code="run.unknown", next_step="See `autoglm runs list`."
        )

    def rows(self) -> list[Mapping[str, Any]]:
        """Runs, newest first: run_id, status, reason, trigger_event, run_spec, at."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                text(
                    "select run_id, status, reason, trigger_event, run_spec, at from admission"
                    " order by at desc, rowid desc"
                )
            ).all()
        return [
            {
                "run_id": run_id,
                "status": status,
                "reason": reason,
                "trigger_event": json.loads(event),
                "run_spec": json.loads(spec),
                "at": at,
            }
            for run_id, status, reason, event, spec, at in rows
        ]

    def unfinished(self) -> list[str]:
        """Oldest first: the order in which they must be taken up."""
        return [r["run_id"] for r in reversed(self.rows()) if r["status"] in UNFINISHED]
