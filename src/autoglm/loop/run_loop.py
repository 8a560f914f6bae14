"""Once round the loop, from what changed to what is served.

changes   ← collect from the source, each exactly once        change_to_dataset
dataset   ← describe what may be learnt from                  change_to_dataset
decision  ← admit a run, or find that nothing changed         dataset_to_run
candidate ← search, export, evaluate, register                run_to_candidate   (durable steps)
rollout   ← gates, traffic weights, aliases                   candidate_to_release (durable)
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.record import to_json
from autoglm.contracts.rollout import Rollout
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.trigger_event import Decision
from autoglm.loop.app import App
from autoglm.loop.candidate_to_release import candidate_to_release
from autoglm.loop.change_to_dataset import collect_changes, describe_dataset
from autoglm.loop.dataset_to_run import data_cause, dataset_to_run, trigger_event
from autoglm.loop.durable import DurableRuns, Step, StepFailedError
from autoglm.loop.names import check_names, check_served
from autoglm.loop.plan import Plan, check_room, make_plan
from autoglm.loop.run_to_candidate import Candidate, run_to_candidate
from autoglm.observability.logging import get_logger, set_trace
from autoglm.observability.tracing import trace_id_of
from autoglm.settings import unfreeze


def admit_changes(dataset: DatasetVersion, plan: Plan, app: App, *, reason: str) -> Decision:
    """A run for these rows and settings, unless one has been. Raises: StorageError for want of
    room, before anything is written down.
    """
    trigger = trigger_event(app, "command", cause=data_cause(dataset, app), reason=reason)
    if app.admission.find(trigger) is None:
        check_room(plan, app.project)
    return dataset_to_run(trigger, dataset, app)


def open_runs(app: App) -> DurableRuns:
    """The project's runs; unfinished ones go on at once."""
    runs = DurableRuns(app.project.state / "runs.db")
    runs.open(lambda run_id, step: run_body(run_id, app, step))
    return runs


def run_body(run_id: str, app: App, step: Step) -> Mapping[str, Any]:
    """A run's steps, in order. Replayed after a crash: recorded steps return what they returned."""
    spec = unfreeze(app.admission.spec(run_id), app.project.config)
    set_trace(spec.traceparent)
    logger = get_logger(run_id=run_id)
    logger.info("run started", dataset_version=spec.dataset.version, trigger=spec.trigger)
    app.admission.set_status(run_id, "running")
    try:
        # Read when the run begins, not when it was admitted: a run before it may have released.
        stable = step("begin", lambda: app.registry.aliases().get("stable", ""))
        spec = replace(spec, stable=stable)
        candidate = run_to_candidate(spec, app, step)
        rollout, seconds = candidate_to_release(spec, candidate, app, step)
        result = succeeded(spec, candidate, rollout)
        result["seconds"]["release"] = seconds
    except StepFailedError as failed:
        result = {**_head(spec), "status": "failed", "error": dict(failed.error)}
    step("finish", lambda: _finish(run_id, result, app))
    logger.info("run finished", status=result["status"])
    return result


def _finish(run_id: str, result: Mapping[str, Any], app: App) -> None:
    stream = f"run/{run_id}"
    if not any(event.kind == "finished" for event in app.log.read(stream)):
        app.log.append(stream, "finished", result)
    app.admission.set_status(run_id, result["status"])
    app.close_trainer()
    app.registry.prune(app.project.settings.storage.keep_versions)
    shutil.rmtree(Path(app.admission.spec(run_id).folder) / "candidate", ignore_errors=True)
    app.clear_work()


def _head(spec: RunSpec) -> dict[str, Any]:
    return {
        "run_id": spec.run_id,
        "trace_id": trace_id_of(spec.traceparent),
        "project": spec.project,
        "dataset_version": {
            "uri": spec.dataset.uri,
            "version": spec.dataset.version,
            "rows": spec.dataset.rows,
        },
    }


def succeeded(spec: RunSpec, candidate: Candidate, rollout: Rollout) -> dict[str, Any]:
    """The one document that `autoglm run --json` prints (and the API gives)."""
    best, report, version = candidate.study.best, candidate.report, candidate.version
    return {
        **_head(spec),
        "status": "succeeded",
        "num_trials": len(candidate.study.trials),
        "stopped_by": candidate.study.stopped_by,
        "unmet": to_json(candidate.study.unmet),
        "best": {
            "params": dict(best.params),
            "metric": candidate.study.metric,
            "value": best.value,
        },
        "evaluation": {name: score.value for name, score in report.candidate.items()},
        "report": to_json(report),
        "model_version": version.digest,
        "model_number": version.number,
        "rollout": {
            "verdict": rollout.verdict,
            "reason": rollout.reason,
            "weight": rollout.weight,
            "replayed_traffic": rollout.is_replayed,
            "rollout_id": rollout.rollout_id,
        },
        "seconds": {k: round(v, 2) for k, v in candidate.seconds.items()},
    }


def unchanged(dataset: DatasetVersion, decision: Decision) -> dict[str, Any]:
    return {
        "run_id": None,
        "trace_id": None,
        "project": dataset.project,
        "status": "unchanged",
        "dataset_version": {"uri": dataset.uri, "version": dataset.version, "rows": dataset.rows},
        "num_trials": 0,
        "best": None,
        "evaluation": {},
        "model_version": None,
        "rollout": None,
        "seconds": {},
        "reason": decision.reason,
    }


def go_round(app: App, runs: DurableRuns, *, plan_only: bool = False) -> Mapping[str, Any]:
    """Once round: finish what an earlier process left, take in the changes, run on them.

    Raises: AutoGLMError; CancelledError when it was stopped and can be resumed.
    """
    unfinished = [] if plan_only else app.admission.unfinished()
    results = [finish(run_id, app, runs) for run_id in unfinished]
    check_names(app.project.settings, app.project.layers)
    check_served(app.project.settings)
    started = time.monotonic()
    collect_changes(app.project, app.cancel, app.on_event)
    dataset = describe_dataset(app.project)
    app.on_event({"kind": "dataset", "dataset": to_json(dataset)})
    collecting = round(time.monotonic() - started, 2)
    plan = make_plan(dataset, app.project)
    app.on_event({"kind": "plan", **to_json(plan)})
    if plan_only:
        check_room(plan, app.project)
        return {"status": "planned", "plan": to_json(plan)}
    decision = admit_changes(dataset, plan, app, reason="autoglm run")
    if decision.outcome == "unchanged":
        return results[-1] if results else unchanged(dataset, decision)
    result = finish(decision.run_id, app, runs)
    return {**result, "seconds": {"collect": collecting, **result.get("seconds", {})}}


def finish(run_id: str, app: App, runs: DurableRuns) -> Mapping[str, Any]:
    """Start or take up a run and see it to its end."""
    spec = app.admission.spec(run_id)
    app.on_event(
        {"kind": "run", "run_id": run_id, "trace_id": trace_id_of(spec.traceparent),
         "trials": spec.config["search"]["trials"]}
    )  # fmt: skip
    return runs.wait(run_id)
