"""run spec ─► study of trials ─► training ─► export ─► evaluation ─► model version"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm.config.schema import leaf_keys
from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.evaluation_report import EvaluationReport
from autoglm.contracts.model_version import ModelVersion
from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.trial import Removal, StudyResult
from autoglm.cores import cores
from autoglm.errors import (
    CancelledError,
    ModelError,
    PluginError,
    SearchError,
    StorageError,
    TrainingError,
)
from autoglm.evaluation.roles import MEASURED, Role, read_roles
from autoglm.loop.app import App
from autoglm.loop.durable import Step
from autoglm.loop.lineage import lineage_of
from autoglm.loop.refreshing import find_refresh
from autoglm.observability.logging import get_logger
from autoglm.plugins import project_files, registry
from autoglm.settings import Settings, from_snapshot
from autoglm.training.decisions import Decisions
from autoglm.training.launcher import TrainingWorker

if TYPE_CHECKING:
    from autoglm.search.task_pruning import Pruned

# The worker is started again this often before a run gives up on it.
WORKER_ATTEMPTS = 3
# A space dimension is a key of one of these sections.
SEARCHABLE = ("model", "training")
# But these: rows, start and worker are opened once, for all trials of a study.
OF_A_STUDY = {
    "model.backbone",
    "model.start_from",
    "model.task",
    "training.seed",
    "training.threads",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A registered model version with the evidence for and against it."""

    version: ModelVersion
    report: EvaluationReport
    study: StudyResult
    seconds: Mapping[str, float]


def run_to_candidate(spec: RunSpec, app: App, step: Step) -> Candidate:
    """Find, train, prove and register the best adaptation. Each step is recorded once."""
    settings = from_snapshot(spec.config)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        def measured() -> dict[str, Any]:
            app.on_event({"kind": "step_started", "step": name})
            started = time.monotonic()
            value = to_json(work())
            return {"value": value, "seconds": round(time.monotonic() - started, 3)}

        outcome = step(name, measured)
        seconds[name] = outcome["seconds"]
        app.on_event({"kind": "step_finished", "step": name, "seconds": outcome["seconds"]})
        plugin_steps(name, spec, app, step)
        return outcome["value"]

    study = from_json(StudyResult, timed("search", lambda: search(spec, settings, app)))
    exported = timed("export", lambda: export(spec, settings, study, app))
    report = from_json(
        EvaluationReport, timed("evaluate", lambda: evaluate(spec, study, exported, app))
    )
    version = from_json(
        ModelVersion, timed("register", lambda: register(spec, study, exported, report, app))
    )
    return Candidate(version=version, report=report, study=study, seconds=seconds)


def plugin_steps(after: str, spec: RunSpec, app: App, step: Step) -> None:
    """The `step` plugins that stand after a step of the run; what each returns is recorded."""
    for name in spec.config["plugins"]["steps"].get(after, []):
        step(f"plugin:{name}", partial(app.errand, "execute", spec=to_json(spec), step=name))


def searchable_keys(backbone: str) -> Mapping[str, Any]:
    """Config keys that a space may name, with their annotations."""
    return {k: made for k, made in trained_keys(backbone).items() if k not in OF_A_STUDY}


def trained_keys(backbone: str) -> Mapping[str, Any]:
    """Config keys that say how one model is trained, with their annotations: `hidden_size` of
    `recurrent` is its own, of every other backbone it is the structure's.
    """
    own = {"conv": "model.conv.", "recurrent": "model.recurrent."}
    shape = own.get(backbone, "model.structure.")
    others = tuple({*own.values(), "model.structure."} - {shape})
    keys = leaf_keys(Settings).items()
    mine = ((k, annotation) for k, annotation in keys if k.split(".")[0] in SEARCHABLE)
    return {k: annotation for k, annotation in mine if not k.startswith(others)}


def search(spec: RunSpec, settings: Settings, app: App) -> StudyResult:
    """The study of this run; told trials are never repeated, whoever died in between."""
    from autoglm.search.constraints import read_constraints, violations
    from autoglm.search.opening import note_failure
    from autoglm.search.results import Objective
    from autoglm.search.study import Study

    if settings.search.sampler not in registry.names("sampler"):
        project_files.open_parts(spec)  # under `up` nobody has read the project's files here yet
    probe_evaluators(spec, app)
    if settings.search.folds and (lacking := app.errand("probe_folds", spec=to_json(spec))):
        get_logger(run_id=spec.run_id).warning(lacking)
        app.on_event({"kind": "folds_warning", "warning": lacking})
    keys, said = searchable_keys(settings.model.backbone), _said(spec)
    asked = pruned_space(settings, said)
    constraints = read_constraints(settings.search.constraints, keys)
    for attempt in range(1, WORKER_ATTEMPTS + 1):
        started = app.clock.monotonic()
        runners = open_trainers(spec, app, settings)
        pruned = probed(asked, spec, settings, runners[0], app)
        refresh = find_refresh(
            spec, settings, pruned, app, runner=runners[0],
            allows=lambda params: not violations(constraints, {**said, **params}),
        )  # fmt: skip
        for runner in runners:
            runner.begin_study(num_alone=len(refresh.points) if refresh is not None else 0)
        study = Study(
            project=spec.project,
            name=spec.run_id,
            config=settings.search,
            dimensions=pruned.dimensions,
            fixed=pruned.fixed,
            removed=pruned.removed,
            constraints=constraints,
            defaults=said,
            metric=settings.evaluate.metric,
            # What find_evaluator gives is greater where it is better.
            objectives=[Objective(name=n, maximize=True) for n in settings.search.objectives],
            seed=spec.seed,
            runners=runners,
            log=app.log,
            clock=app.clock,
            on_event=app.on_event,
            bounds=bounds_of(settings),
            refresh=refresh,
            start="stable" if runners[0].starts_from_stable else "backbone",
        )
        try:
            found = study.run(app.cancel, started=started)
            app.trainers(1, threads=0)  # the memory of the others is wanted
            return found
        except CancelledError:
            raise
        except (SearchError, PluginError, ModelError) as error:
            note_failure(app.log, spec.run_id, error)
            raise
        except TrainingError as error:
            if error.code == "training.worker_died":
                app.close_dead_trainers()
            else:
                app.close_trainer()
            if not error.retryable or attempt == WORKER_ATTEMPTS:
                note_failure(app.log, spec.run_id, error)
                raise
            app.on_event({"kind": "worker_restarted", "cause": error.message})
    raise AssertionError("the loop returns or raises")


def pruned_space(settings: Settings, own: Mapping[str, Any]) -> Pruned:
    """The project's space without what its task and its prior take out. Raises: SearchError."""
    from autoglm.search.space import space_said
    from autoglm.search.task_pruning import prune

    keys = searchable_keys(settings.model.backbone)
    every = {k: note for k, note in leaf_keys(Settings).items() if k.split(".")[0] in SEARCHABLE}
    others = {k: note for k, note in every.items() if k not in {*keys, *OF_A_STUDY}}
    _refuse_of_a_study([*space_said(settings.search.space), *settings.search.prior])
    return prune(
        settings.search.space,
        keys,
        others=others,
        prior=settings.search.prior,
        task=settings.model.task,
        backbone=settings.model.backbone,
        own=own,
    )


def most_trials(settings: Settings, own: Mapping[str, Any]) -> int:
    """`search.trials`, or all points of a smaller space. `own` are the project's values by key.

    Raises: SearchError.
    """
    from autoglm.search.space import num_points

    pruned = pruned_space(settings, own)
    num = num_points(pruned.dimensions, {**own, **pruned.fixed})
    return min(settings.search.trials, num or settings.search.trials)


def _refuse_of_a_study(names: Sequence[str]) -> None:
    for name in names:
        for key in OF_A_STUDY:
            if name in {key, key.partition(".")[2]}:
                raise SearchError(
                    f"search.space: {key} is one for all trials of a study.",
                    code="search.unknown_key",
                    next_step=f"Set {key} itself, and start a study for each value.",
                    exit_code=2,
                )


def probed(asked: Pruned, spec: RunSpec, settings: Settings, runner: Any, app: App) -> Pruned:
    """What is left when heads over kept features have been asked; found out once per run."""
    from autoglm.search.task_pruning import by_probe

    def removals() -> Any:
        metric, own = settings.evaluate.metric, _said(spec)
        found = by_probe(asked, runner, metric=metric, own=own, cancel=app.cancel)
        return [to_json(r) for r in found.removed if r.by == "probe"]

    removed = asked.removed
    if settings.search.probe:
        decisions = Decisions(Path(spec.folder) / "decisions.json")
        found = decisions.decided("probe", removals)
        removed = (*removed, *(from_json(Removal, each) for each in found))
    for removal in removed:
        app.on_event({"kind": "dimension_removed", **to_json(removal)})
    gone = {removal.key for removal in removed}
    kept = tuple(d for d in asked.dimensions if d.key not in gone)
    return replace(asked, dimensions=kept, removed=removed)


def probe_evaluators(spec: RunSpec, app: App) -> None:
    """Ask the evaluators of perfect and constant predictions, before anything is trained, and warn
    of what cannot be meant. Raises: PluginError of one that picks or constrains and breaks.
    """
    for found in app.errand("probe", spec=to_json(spec)):
        if found["warning"]:
            get_logger(run_id=spec.run_id).warning(found["warning"], evaluator=found["evaluator"])
            app.on_event({"kind": "evaluator_warning", **found})


def bounds_of(settings: Settings) -> tuple[Role, ...]:
    """The constraints whose values can be known before the export."""
    roles = read_roles(settings.evaluate.metrics)
    return tuple(r for r in roles if r.role == "constraint" and r.name not in MEASURED)


def _said(spec: RunSpec) -> Mapping[str, Any]:
    """What the project says where the space does not."""
    return {key: _at(spec.config, key) for key in searchable_keys(spec.config["model"]["backbone"])}


def _at(tree: Mapping[str, Any], key: str) -> Any:
    for name in key.split("."):
        tree = tree[name]
    return tree


def open_trainers(spec: RunSpec, app: App, settings: Settings) -> list[Any]:
    """`search.workers` of them; the cores are divided unless threads are said. One after the other:
    what the first makes of rows and weights the others find.
    """
    num, threads = settings.search.workers, settings.training.threads
    if num > 1 and not threads:
        threads = max(1, cores() // num)
    started = app.trainers(num, threads=threads)
    return [_opened(trainer, spec, app) for trainer in started]


def open_trainer(spec: RunSpec, app: App) -> Any:
    """The warm worker, opened on the spec's rows and start."""
    return _opened(app.trainer(), spec, app)


def _opened(trainer: TrainingWorker, spec: RunSpec, app: App) -> TrainingWorker:
    stable = app.registry.get(spec.stable) if spec.stable else None
    trainer.open(
        spec,
        start_folder=Path(stable.folder) if stable else None,
        base=app.project.folder,
        learnt=_learnt_by(stable, app) if stable else None,
    )
    return trainer


def _learnt_by(version: ModelVersion, app: App) -> DatasetVersion | None:
    """None where its run is not one of this project, or gone."""
    with contextlib.suppress(StorageError, ValueError):
        return app.admission.spec(version.lineage.run_id).dataset
    return None


def export(spec: RunSpec, settings: Settings, study: StudyResult, app: App) -> Any:
    """The best trial as a model folder with a graph that answers alike."""
    trainer = open_trainer(spec, app)
    chain = trainer.plan(study.best.params)
    # Idempotent: the stored stage is found, or trained again if its files are gone.
    trainer.advance(chain, chain.num_steps, cancel=app.cancel)
    exported = trainer.export(chain, Path(spec.folder) / "candidate")
    app.close_trainer()
    return exported


def stable_to_beat(spec: RunSpec, app: App) -> ModelVersion | None:
    """The version that was in service when the run began. None too when it learnt another task:
    answers of two forms cannot be compared, and the candidate is the first of its own.
    """
    stable = app.registry.get(spec.stable) if spec.stable else None
    if stable is None:
        return None
    facts = json.loads((Path(stable.folder) / "autoglm.json").read_text(encoding="utf-8"))
    return stable if facts.get("task", spec.dataset.task) == spec.dataset.task else None


def evaluate(
    spec: RunSpec, study: StudyResult, exported: Mapping[str, Any], app: App
) -> Mapping[str, Any]:
    """Candidate, stable and the floors on the same test rows. A constraint that no trial kept on
    the validation rows fails the candidate, though test rows may happen to be easier. A refresh
    fits no linear floor: its rows are nearly those of the whole study before it.
    """
    from autoglm.search.bounds import said_of

    stable = stable_to_beat(spec, app)
    folder, since = (stable.folder, stable.lineage.dataset_version) if stable else ("", None)
    report: Mapping[str, Any] = app.evaluate(
        spec, exported["folder"], folder, since=since, fits_floor=study.is_whole
    )
    if not study.unmet:
        return report
    before = "" if report["verdict"] == "Successful" else f"{report['reason']}; "
    reason = f"{before}constraint_missed on the validation rows: {said_of(study.unmet)}"
    return {**report, "verdict": "Failed", "reason": reason}


def register(
    spec: RunSpec,
    study: StudyResult,
    exported: Mapping[str, Any],
    report: EvaluationReport,
    app: App,
) -> ModelVersion:
    parent = app.registry.get(spec.stable) if spec.stable else None
    return app.registry.add(
        Path(exported["folder"]),
        lineage_of(spec, study, report, parent),
        labels=exported["labels"],
        opens_with=exported["opens_with"],
        runtime=exported["runtime"],
    )
