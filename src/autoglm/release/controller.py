"""The rollout: weight up step by step while the gates hold, else back to stable.

State is a fold over the events of `rollout/ID`. A weight is written down before it is applied, as
an absolute number under a new generation: a controller that was killed anywhere sets it again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol

from autoglm import fail_points
from autoglm.clock import Clock
from autoglm.contracts.measurement import Block
from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.rollout import Rollout, RouteTable, Verdict
from autoglm.errors import CancelledError, ReleaseError
from autoglm.release.config import ReleaseConfig
from autoglm.release.gates import judge
from autoglm.state.event_log import EventLog

POLL_SECONDS = 0.25
# A candidate that is too slow for this many looks in a row is taken back.
MAX_SLOW_LOOKS = 40
MAX_PROVIDER_ERRORS = 3
PROVIDER_WAIT_SECONDS = 5.0
MAX_TAKE_BACKS = 6
OnEvent = Callable[[Mapping[str, Any]], None]

_before_weight = fail_points.declare("release.before_weight", "weight written down, not applied")
_after_weight = fail_points.declare("release.after_weight", "weight applied, not judged")


class Gateway(Protocol):
    """What the controller needs of a gateway."""

    def set_routes(self, routes: RouteTable) -> None: ...
    def routes(self) -> RouteTable | None: ...
    def measure(self, query: str, *, window: timedelta) -> Block: ...


class RolloutController:
    """One rollout at a time; safe to run again after a crash."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        log: EventLog,
        clock: Clock,
        config: ReleaseConfig,
        on_event: OnEvent,
    ) -> None:
        self._gateway, self._log, self._clock = gateway, log, clock
        self._config, self._on_event = config, on_event

    def first_release(
        self, rollout: Rollout, folders: Mapping[str, str], traces: Mapping[str, str]
    ) -> Rollout:
        """There is no stable of this task to protect: the candidate becomes it at once."""
        ended = self._recorded_verdict(rollout)
        if ended is not None:
            return ended
        self._set(rollout, folders, traces, stable=rollout.candidate, candidate="", weight=0)
        return self._end(replace(rollout, weight=100), "Successful", "first_release")

    def run(
        self,
        rollout: Rollout,
        folders: Mapping[str, str],
        traces: Mapping[str, str],
        *,
        cancel: threading.Event,
        traffic_alive: Callable[[], bool],
    ) -> Rollout:
        """Go through the release steps from where the events say; returns with a verdict.

        Raises: CancelledError (nothing is recorded; the weight in force stays).
        """
        ended = self._recorded_verdict(rollout)
        if ended is not None:
            return ended
        step = self._step_reached(rollout)
        while step < len(rollout.steps):
            rollout = replace(rollout, step=step, weight=rollout.steps[step])
            self._set_weight(rollout, folders, traces)
            verdict, reason = self._hold(rollout, cancel, traffic_alive)
            if verdict is not None:
                self._take_back(rollout, folders, traces)
                return self._end(replace(rollout, weight=0), verdict, reason)
            self._record(rollout, "advanced", {"step": step, "reason": reason})
            step += 1
        self._set(rollout, folders, traces, stable=rollout.candidate, candidate="", weight=0)
        return self._end(replace(rollout, weight=100), "Successful", "promoted")

    def _hold(
        self, rollout: Rollout, cancel: threading.Event, traffic_alive: Callable[[], bool]
    ) -> tuple[Verdict | None, str]:
        """Measure until the step's gates hold (no verdict) or the rollout is over."""
        started, errors, slow, paused = self._clock.monotonic(), 0, 0, False
        deadline = self._config.step_deadline.total_seconds()
        while True:
            if self._clock.wait(cancel, POLL_SECONDS):
                raise CancelledError("the rollout was stopped.", next_step="Resume the run.")
            try:
                block = self._gateway.measure("block", window=timedelta(0))
            except ReleaseError as error:
                errors += 1
                if errors == MAX_PROVIDER_ERRORS:
                    return "Inconclusive", f"no_measurements: {error.message}"
                # A gateway that died is started again: it needs a moment.
                self._clock.wait(cancel, PROVIDER_WAIT_SECONDS)
                continue
            errors = 0
            judgement = judge(block, self._config, weight=rollout.weight)
            self._tell(rollout, "measured", {"reason": judgement.reason})
            if judgement.action == "fail":
                return "Failed", judgement.reason
            if judgement.action == "pause":
                slow += 1
                if not paused:
                    paused = True
                    self._record(rollout, "paused", {"reason": judgement.reason})
                if slow == MAX_SLOW_LOOKS:
                    return "Inconclusive", judgement.reason
                continue
            if paused:
                paused, slow = False, 0
                self._record(rollout, "resumed", {"reason": "mean latency is below the limit"})
            if judgement.action == "advance":
                return None, judgement.reason
            if not traffic_alive() or self._clock.monotonic() - started > deadline:
                return "Inconclusive", "no_traffic"

    def _set_weight(
        self, rollout: Rollout, folders: Mapping[str, str], traces: Mapping[str, str]
    ) -> None:
        self._record(rollout, "weight_set", {"weight": rollout.weight, "step": rollout.step})
        _before_weight()
        self._set(
            rollout,
            folders,
            traces,
            stable=rollout.stable,
            candidate=rollout.candidate,
            weight=rollout.weight,
        )
        _after_weight()

    def _take_back(
        self, rollout: Rollout, folders: Mapping[str, str], traces: Mapping[str, str]
    ) -> None:
        """Weight 0 first, in one swap; then the candidate may drain and go. A gateway that does not
        answer is asked again: it would come back with the weight that lies on its disk.
        """
        for attempt in range(1, MAX_TAKE_BACKS + 1):
            try:
                for candidate in (rollout.candidate, ""):
                    self._set(
                        rollout,
                        folders,
                        traces,
                        stable=rollout.stable,
                        candidate=candidate,
                        weight=0,
                    )
                return
            except ReleaseError as error:
                if attempt == MAX_TAKE_BACKS:
                    # Control sets routes and aliases right when it is idle (`reconcile`).
                    self._record(rollout, "unreachable", {"reason": error.message})
                self._clock.wait(threading.Event(), PROVIDER_WAIT_SECONDS)

    def _set(
        self,
        rollout: Rollout,
        folders: Mapping[str, str],
        traces: Mapping[str, str],
        *,
        stable: str,
        candidate: str,
        weight: int,
    ) -> None:
        current = self._gateway.routes()
        named = {digest for digest in (stable, candidate) if digest}
        self._gateway.set_routes(
            RouteTable(
                project=rollout.project,
                generation=(current.generation if current else 0) + 1,
                stable=stable,
                candidate=candidate,
                candidate_weight=weight,
                folders={d: f for d, f in folders.items() if d in named},
                traces={d: t for d, t in traces.items() if d in named},
                salt=rollout.rollout_id,
            )
        )

    def _recorded_verdict(self, rollout: Rollout) -> Rollout | None:
        for event in self._log.read(f"rollout/{rollout.rollout_id}"):
            if event.kind == "verdict":
                return from_json(Rollout, event.data)
        return None

    def _step_reached(self, rollout: Rollout) -> int:
        step = 0
        for event in self._log.read(f"rollout/{rollout.rollout_id}"):
            if event.kind == "weight_set":
                step = int(event.data["step"])
            if event.kind == "advanced":
                step = int(event.data["step"]) + 1
        return step

    def _end(self, rollout: Rollout, verdict: Verdict, reason: str) -> Rollout:
        ended = replace(rollout, verdict=verdict, reason=reason)
        self._record(ended, "verdict", to_json(ended))
        return ended

    def _record(self, rollout: Rollout, kind: str, data: Mapping[str, Any]) -> None:
        self._log.append(f"rollout/{rollout.rollout_id}", kind, data)
        self._tell(rollout, kind, data)

    def _tell(self, rollout: Rollout, kind: str, data: Mapping[str, Any]) -> None:
        self._on_event(
            {"weight": rollout.weight, "is_replayed": rollout.is_replayed, **data, "kind": kind}
        )
