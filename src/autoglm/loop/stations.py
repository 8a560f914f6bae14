"""One station of the way alone: search, train once, or evaluate a model, on a dataset version.

dataset version ─► study of trials                  (told trials are not repeated)
dataset version ─► one trial ─► model folder        (no search, no release, no run is recorded)
model folder ─► evaluation report                   (beside another model, if one is named)
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autoglm.config.provenance import flat
from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.evaluation_report import EvaluationReport
from autoglm.contracts.record import digest, from_json, to_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.trial import StudyResult
from autoglm.errors import ModelError, StorageError
from autoglm.loop import run_to_candidate
from autoglm.loop.app import App, ignore
from autoglm.loop.change_to_dataset import collect_changes, describe_dataset
from autoglm.loop.dataset_to_run import draft_spec, trigger_event
from autoglm.loop.names import check_names
from autoglm.loop.refreshing import keep_spec
from autoglm.loop.run_to_candidate import open_trainer, probe_evaluators, trained_keys
from autoglm.project import Project
from autoglm.settings import from_snapshot, unfreeze
from autoglm.training.stages import STAGES, let_go

OnEvent = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """A model folder and what it was worth on the validation rows. It is no model version: nobody
    has proved it against the one in service. `peak`: the most memory that training took, in bytes.
    """

    folder: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    num_steps: int
    cpu_seconds: float
    peak: Mapping[str, int]
    dataset_version: int
    dataset_digest: str
    labels: tuple[str, ...]
    opens_with: str
    parity: float


def train(app: App, target: Path, params: Mapping[str, Any]) -> TrainedModel:
    """Train with the project's settings and `params` (config keys of model and training) over them.

    The newest dataset version is taken; a table without rows is filled first. Stopped and called
    again with the same settings it goes on from its last checkpoint.
    Raises: ConfigError, StorageError storage.exists, DataError, ModelError, TrainingError,
    PluginError, CancelledError.
    """
    if target.exists():
        raise StorageError(f"{target} exists.", code="storage.exists", next_step="Choose another.")
    if params:
        app = replace(app, project=app.project.with_values(params))
    spec = _spec(app)
    try:
        probe_evaluators(spec, app)
        trainer = open_trainer(spec, app)
        chain = trainer.plan({})  # what was asked for is in the spec
        progress = trainer.advance(chain, chain.num_steps, cancel=app.cancel)
        exported = trainer.export(chain, target.resolve())
    finally:
        app.close_trainer()
    return TrainedModel(
        folder=exported["folder"],
        params=dict(params),
        metrics=progress.metrics,
        num_steps=progress.num_steps,
        cpu_seconds=progress.cpu_seconds,
        peak=progress.peak,
        dataset_version=spec.dataset.version,
        dataset_digest=spec.dataset.content_digest,
        labels=tuple(exported["labels"]),
        opens_with=exported["opens_with"],
        parity=exported["parity"],
    )


def search(app: App) -> StudyResult:
    """A study on the newest dataset version; nothing is exported, registered or released.

    Stopped and called again with the same settings and rows it goes on; ended, it is read.
    Raises: ConfigError, DataError, SearchError, TrainingError, CancelledError.
    """
    draft = _draft(app)
    keep_spec(draft)
    spec = unfreeze(draft, app.project.config)
    settings = from_snapshot(spec.config)
    trials = run_to_candidate.most_trials(settings, flat(settings))
    app.on_event({"kind": "study", "study": spec.run_id, "trials": trials})
    try:
        found = run_to_candidate.search(spec, settings, app)
    finally:
        app.close_trainer()
    let_go(app.work / STAGES, settings.cache.bytes, but={found.best.chain_key})
    return found


def evaluate(app: App, model: str, against: str = "") -> EvaluationReport:
    """`model` and `against` are a folder, an alias, a number or a digest. Nothing is released.

    Raises: ModelError model.other_task, model.folder_incomplete; StorageError of unknown names.
    """
    spec = _spec(app)
    folders = [_folder(app, name) if name else "" for name in (model, against)]
    for folder in filter(None, folders):
        facts = json.loads((Path(folder) / "autoglm.json").read_text(encoding="utf-8"))
        if (learnt := facts.get("task", spec.dataset.task)) != spec.dataset.task:
            raise ModelError(
                f"{folder} learnt {learnt}, the project's task is {spec.dataset.task}.",
                code="model.other_task",
                next_step="Evaluate it in a project of its task.",
            )
    return from_json(EvaluationReport, app.evaluate(spec, folders[0], folders[1]))


def _folder(app: App, name: str) -> str:
    if (Path(name) / "autoglm.json").is_file():
        return name
    if Path(name).is_dir():
        raise ModelError(
            f"{name} is no exported model: it has no autoglm.json.",
            code="model.folder_incomplete",
            next_step="Name a folder that `autoglm train` or `autoglm models export` wrote.",
        )
    return str(app.registry.find(name).folder)


def _spec(app: App) -> RunSpec:
    """What a run would get, without being one: nothing is admitted."""
    return unfreeze(_draft(app), app.project.config)


def _draft(app: App) -> RunSpec:
    """As it may lie on a disk."""
    check_names(app.project.settings, app.project.layers)
    dataset = _dataset(app)
    trigger = trigger_event(app, "command", cause="", reason="one station")
    draft = draft_spec(trigger, dataset, app)
    name = digest(draft.config_digest, dataset.content_digest, size=6)
    folder = str(app.project.state / "runs" / f"alone-{name}")
    return replace(draft, run_id=f"alone-{name}", folder=folder)


def _dataset(app: App) -> DatasetVersion:
    if app.project.table().version < 0:
        collect_changes(app.project, app.cancel, app.on_event)
    dataset = describe_dataset(app.project)
    app.on_event({"kind": "dataset", "dataset": to_json(dataset)})
    return dataset


class Trainer:
    """Trains and evaluates a project's model from Python, one call at a time.

    with autoglm.Trainer("news") as trainer:
        trained = trainer.train("out", lr=1e-4, epochs=2)
        report = trainer.evaluate(trained.folder)

    Holds the project while it is open. Raises: OwnerError when another process holds it.
    """

    def __init__(self, project: Project | Path | str, *, on_event: OnEvent = ignore) -> None:
        self.project = project if isinstance(project, Project) else Project(project)
        self.cancel = threading.Event()
        self._on_event = on_event
        self._app: App | None = None

    def __enter__(self) -> Self:
        self._own = self.project.own("autoglm.Trainer")
        self._own.__enter__()
        self._app = App(project=self.project, cancel=self.cancel, on_event=self._on_event)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()
        self._app = None
        self._own.__exit__(kind, error, trace)

    def train(self, folder: Path | str, **params: Any) -> TrainedModel:
        """Write a trained model to `folder`. `params` are config keys of model and training, or
        their unique last part, with what a file may say there (`memory_budget="4GiB"`).

        Raises: SearchError for a name that nobody reads; see `stations.train`.
        """
        from autoglm.search.space import resolve

        said = [v for k, v in params.items() if k in {"backbone", "model.backbone"}]
        keys = trained_keys(str([self.project.settings.model.backbone, *said][-1]))
        return train(self._opened, Path(folder), {resolve(n, keys): v for n, v in params.items()})

    def evaluate(self, model: Path | str, *, against: Path | str = "") -> EvaluationReport:
        """Scores of `model` on the test rows, with intervals and floors; paired with `against`."""
        return evaluate(self._opened, str(model), str(against))

    @property
    def _opened(self) -> App:
        if self._app is None:
            raise ValueError("open it first: `with autoglm.Trainer(…) as trainer:`")
        return self._app
