"""cron · data_changed · manual · command ─► admission ─► run spec"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.record import digest
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.trigger_event import Decision, TriggerEvent, TriggerKind
from autoglm.loop.app import App
from autoglm.loop.names import check_served
from autoglm.loop.tuning import changed_files, tuning_of
from autoglm.observability.tracing import new_traceparent
from autoglm.plugins.project_files import execute, read_files
from autoglm.search.space import space_said
from autoglm.settings import freeze, learning_digest, metric_of


def dataset_to_run(trigger: TriggerEvent, dataset: DatasetVersion, app: App) -> Decision:
    """Ask admission for a run on `dataset`; the same cause gives the same run.

    Raises: ConfigError release.cannot_serve for a task that nobody can serve.
    """
    check_served(app.project.settings)
    # Everything is read before admission's transaction, which holds the write lock of state.db.
    spec = draft_spec(trigger, dataset, app)

    def name(run_id: str) -> RunSpec:
        return replace(spec, run_id=run_id, folder=str(app.project.state / "runs" / run_id))

    decision = app.admission.decide(trigger, name)
    if decision.outcome == "admitted":
        app.log.append(
            f"run/{decision.run_id}",
            "admitted",
            {
                "trigger": trigger.trigger,
                "reason": trigger.reason,
                "dataset_version": dataset.version,
                "linked_traces": [dataset.traceparent, *dataset.linked_traces][:64],
            },
        )
    return decision


def draft_spec(trigger: TriggerEvent, dataset: DatasetVersion, app: App) -> RunSpec:
    """The spec of a run that has no name yet: the settings in force, frozen."""
    now = app.project.config  # one tree, also when it is changed meanwhile
    settings, (config, secrets) = now.settings, freeze(now)
    config["evaluate"]["metric"] = metric_of(settings)
    files = read_files(app.project.folder, settings.imports)
    # A file's own space is asked for once: the run, and whoever resumes it, reads it from here.
    execute(files, app.project.state / "code")
    config["search"]["space"] = space_said(settings.search.space)
    return RunSpec(
        project=app.project.name,
        run_id="",
        cause=trigger.cause,
        trigger=trigger.trigger,
        dataset=dataset,
        config=config,
        secrets=secrets,
        config_digest=learning_digest(settings, files),
        seed=settings.training.seed,
        stable=app.registry.aliases().get("stable", ""),
        folder="",
        traceparent=trigger.traceparent,
        tuning=tuning_of(len(files)),
        changed_source=changed_files(),
        imports=files,
        created_at=app.clock.now(),
    )


def data_cause(dataset: DatasetVersion, app: App) -> str:
    """Equal rows and equal learning settings teach the same model: one cause."""
    settings = app.project.settings
    files = read_files(app.project.folder, settings.imports)
    return digest("data", dataset.content_digest, learning_digest(settings, files))


def trigger_event(
    app: App,
    kind: TriggerKind,
    *,
    cause: str,
    reason: str,
    overrides: Mapping[str, Any] | None = None,
    traceparent: str = "",
) -> TriggerEvent:
    return TriggerEvent(
        project=app.project.name,
        trigger=kind,
        cause=cause,
        reason=reason,
        requested_at=app.clock.now(),
        traceparent=traceparent or new_traceparent(),
        overrides=overrides or {},
    )
