"""model version ─► rollout ─► judge ─► traffic weight ─► gateway"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from autoglm.contracts.record import digest, from_json, to_json
from autoglm.contracts.rollout import Rollout, RouteTable, Verdict
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.task import answer_from_json, answer_to_json
from autoglm.errors import PluginError
from autoglm.evaluation.asking import needs_proba, value_of
from autoglm.evaluation.evaluator import find_evaluator
from autoglm.loop.app import App
from autoglm.loop.durable import Step
from autoglm.loop.run_to_candidate import Candidate, plugin_steps, stable_to_beat
from autoglm.observability.logging import get_logger
from autoglm.plugins import project_files
from autoglm.release.controller import RolloutController
from autoglm.release.replay import ReplayedTraffic
from autoglm.settings import from_snapshot


def candidate_to_release(
    spec: RunSpec, candidate: Candidate, app: App, step: Step
) -> tuple[Rollout, float]:
    """Give the candidate its traffic step by step, or take it back. Recorded once, with its
    seconds.
    """

    def measured() -> dict[str, Any]:
        started = time.monotonic()
        return {
            "rollout": to_json(release(spec, candidate, app)),
            "seconds": round(time.monotonic() - started, 2),
        }

    outcome = step("release", measured)
    plugin_steps("release", spec, app, step)
    return from_json(Rollout, outcome["rollout"]), outcome["seconds"]


def release(spec: RunSpec, candidate: Candidate, app: App) -> Rollout:
    """Idempotent: the rollout is a fold over its events, the aliases move by compare-and-set."""
    settings = from_snapshot(spec.config)
    stable = app.registry.resolve("stable")
    version, report = candidate.version, candidate.report
    is_first = stable_to_beat(spec, app) is None
    rollout = Rollout(
        project=spec.project,
        rollout_id=f"rollout-{digest(spec.run_id, size=6)}",
        run_id=spec.run_id,
        candidate=version.digest,
        # On resume after promotion stable is the candidate already; the spec knows whom it met.
        stable=spec.stable,
        kind="quality",
        steps=settings.release.steps,
        step=0,
        weight=0,
        verdict=None,
        reason="",
        is_paused=False,
        is_replayed=not is_first and app.replay,
        started_at=app.clock.now(),
        traceparent=spec.traceparent,
    )
    in_service = stable.digest if stable else ""
    if in_service not in (spec.stable, version.digest):
        # Somebody moved the alias meanwhile: what was proved is proved against another version.
        return _ended(rollout, app, "Inconclusive", "stable_moved", weight=0)
    if spec.stable == version.digest:
        return _ended(rollout, app, "Successful", "same_model", weight=100)
    if report.verdict != "Successful":
        inconclusive = report.verdict == "Inconclusive"
        return _ended(
            rollout, app, "Inconclusive" if inconclusive else "Failed", report.reason, weight=0
        )
    app.registry.move(
        "candidate", version.digest, expect=app.registry.aliases().get("candidate", "")
    )
    known = [version, *([stable] if stable else [])]
    folders = {v.digest: v.folder for v in known}
    traces = {v.digest: v.lineage.trace_id for v in known}
    app.ensure_gateway()
    assert app.admin is not None, "ensure_gateway sets it"
    controller = RolloutController(
        gateway=app.admin,
        log=app.log,
        clock=app.clock,
        config=settings.release,
        on_event=app.on_event,
    )
    if is_first:
        rollout = controller.first_release(rollout, folders, traces)
    else:
        with _traffic(spec, app) as is_alive:
            rollout = controller.run(
                rollout, folders, traces, cancel=app.cancel, traffic_alive=is_alive
            )
    _move_aliases(rollout, app)
    return rollout


def reconcile(app: App) -> bool:
    """Bring the gateway's routes in line with the alias `stable`; says whether they were not.

    For when no rollout is under way: a gateway that was down when a candidate was taken back comes
    back with the weight on its disk.
    """
    stable = app.registry.resolve("stable")
    app.ensure_gateway()
    assert app.admin is not None, "ensure_gateway sets it"
    routes = app.admin.routes()
    is_so = routes is not None and (routes.stable, routes.candidate) == (
        stable.digest if stable else "", "",
    )  # fmt: skip
    if stable is None or is_so:
        return False
    app.admin.set_routes(
        RouteTable(
            project=app.project.name,
            generation=(routes.generation if routes else 0) + 1,
            stable=stable.digest,
            candidate="",
            candidate_weight=0,
            folders={stable.digest: stable.folder},
            traces={stable.digest: stable.lineage.trace_id},
            salt="",
        )
    )
    return True


def _move_aliases(rollout: Rollout, app: App) -> None:
    candidate = rollout.candidate
    if rollout.verdict == "Successful":
        previous = app.registry.aliases().get("previous", "")
        app.registry.move_many(
            {
                "previous": (previous, rollout.stable),
                "stable": (rollout.stable, candidate),
                "candidate": (candidate, ""),
            }
        )
    else:
        app.registry.move("candidate", "", expect=candidate)


def _ended(rollout: Rollout, app: App, verdict: Verdict, reason: str, *, weight: int) -> Rollout:
    """A rollout that was over before any traffic, written down like every other."""
    from dataclasses import replace

    ended = replace(rollout, verdict=verdict, reason=reason, weight=weight, is_replayed=False)
    stream = f"rollout/{rollout.rollout_id}"
    if not any(event.kind == "verdict" for event in app.log.read(stream)):
        app.log.append(stream, "verdict", to_json(ended))
    return ended


@contextmanager
def _traffic(spec: RunSpec, app: App) -> Iterator[Callable[[], bool]]:
    """Held-out rows stand in for users who are not there; says whether traffic may come."""
    assert app.gateway is not None, "a rollout runs behind a gateway"
    if not app.replay:
        # A lone run without replay has no users at all; under `up` they may come at any time.
        yield lambda: not app.is_alone
        return
    from autoglm.datasets.dataset_version import load_rows

    rows = load_rows(spec.dataset, "test")
    traffic = ReplayedTraffic(
        app.gateway.address,
        [(to_json(i), answer_to_json(a)) for i, a in zip(rows.inputs, rows.answers, strict=True)],
        seed=spec.seed,
        clients=app.project.settings.release.replay_clients,
    )
    traffic.start()
    try:
        yield lambda: True
    finally:
        traffic.stop()
        metric = str(spec.config["evaluate"]["metric"])
        app.on_event(
            {"kind": "replayed_traffic", **to_json(traffic.report()), "metric": metric,
             "scores": _scores(spec, metric, traffic.said())}
        )  # fmt: skip


def _scores(
    spec: RunSpec, metric: str, said: Mapping[str, Sequence[tuple[Any, Any]]]
) -> dict[str, float | None]:
    """What users were answered, by the evaluator that picked and gated; None where it is undefined,
    or wants shares, which no user is told.
    """
    scores: dict[str, float | None] = {}
    try:
        project_files.open_parts(spec)  # of a resumed run nobody has read them in this process
        evaluator, form = find_evaluator(metric), spec.dataset.form
        for version, pairs in said.items():
            name = "stable" if version == spec.stable else "candidate"
            sides = zip(*pairs, strict=True)
            truth, answers = ([answer_from_json(each, form) for each in side] for side in sides)
            scores[name] = None if needs_proba(evaluator) else value_of(evaluator, truth, answers)
    except PluginError as error:  # traffic goes by its guards; this only tells
        get_logger().warning("evaluator gave no score", evaluator=metric, cause=str(error))
    return scores
