"""Whether a run asks what an earlier one has answered: the same settings, nearly the same rows."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.datasets.comparison import compare
from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.errors import AutoGLMError
from autoglm.loop.app import App
from autoglm.settings import Settings, completed
from autoglm.triggers.admission import Admission, at_home

if TYPE_CHECKING:
    from autoglm.search.refresh import Refresh
    from autoglm.search.task_pruning import Pruned

# Where training starts is asked apart; `refresh` says when to look back, not for what, and
# `rehearsal` how.
NO_QUESTION = {"model": {"start_from"}, "search": {"refresh", "rehearsal"}}
# What a study that is no run's asked, and of which rows.
SPEC = "spec.json"


def find_refresh(
    spec: RunSpec,
    settings: Settings,
    pruned: Pruned,
    app: App,
    *,
    runner: Any,
    allows: Callable[[Mapping[str, Any]], bool] = lambda _params: True,
) -> Refresh | None:
    """The answer to be tried first. None without one, or where `search.refresh` wants none.
    `allows` says whether a trial's values, those beside the space included, keep the constraints.

    With several objectives a study looks for more than one point, so it is always a whole one.
    """
    from autoglm.search.refresh import refresh_of

    search = settings.search
    if not search.refresh or not search.warm_start or search.objectives:
        return None
    # Over folds each row that does not test is scored once.
    scored = ("validation", "train") if search.folds else ("validation",)
    found = refresh_of(
        app.log,
        spec.run_id,
        pruned.dimensions,
        AsOfRun(spec, settings, pruned, app, runner=runner, allows=allows),
        metric=settings.evaluate.metric,
        num_rows=sum(int(spec.dataset.split_rows.get(part, 0)) for part in scored),
        margin=settings.evaluate.margin,
    )
    if found is not None:
        app.on_event(_event_of(found))
    return found


class AsOfRun:
    """`search.refresh.Circumstances` of a run, or of a study alone."""

    def __init__(
        self,
        spec: RunSpec,
        settings: Settings,
        pruned: Pruned,
        app: App,
        *,
        runner: Any,
        allows: Callable[[Mapping[str, Any]], bool],
    ) -> None:
        self._spec, self._settings, self._pruned, self._app = spec, settings, pruned, app
        self._runner, self._allows = runner, allows
        self.starts_from_stable = bool(runner.starts_from_stable)

    def changed_since(self, study: str) -> float | None:
        earlier = _spec_of(study, self._app)
        if earlier is None or _question(earlier) != _question(self._spec, like=earlier):
            return None
        changed = _changed(earlier, self._spec)
        if changed is None or changed > self._settings.search.refresh:
            return None
        # A run of the very rows of another run was asked for to search again; of those that a study
        # alone has searched, to use what it found.
        return changed if changed or study not in _runs(self._app) else None

    def stable_knows(self, study: str) -> bool:
        earlier, stable = _spec_of(study, self._app), self._app.registry.get(self._spec.stable)
        if earlier is None or stable is None:
            return False
        learnt, its_run = stable.lineage, _spec_of(stable.lineage.run_id, self._app)
        uri = learnt.dataset_uri if its_run is None else its_run.dataset.uri
        return uri == earlier.dataset.uri and learnt.dataset_version >= earlier.dataset.version

    def was_refused(self, study: str) -> bool | None:
        ended = [e.data for e in self._app.log.read(f"run/{study}") if e.kind == "finished"]
        verdicts = [(said.get("rollout") or {}).get("verdict") for said in ended]
        return verdicts[-1] == "Failed" if verdicts and verdicts[-1] else None

    def allows(self, params: Mapping[str, Any]) -> bool:
        return self._allows({**self._pruned.fixed, **params})

    def cost(self, params: Mapping[str, Any]) -> float:
        wanted = {**self._pruned.fixed, **params}
        try:
            return float(self._runner.cost(self._runner.plan(wanted)).cpu_seconds)
        except AutoGLMError:
            return math.inf  # the trial will say what is wrong

    def cheaper(self, start: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """What project and constraints leave open: from stable, to leave out rows that it knows;
        from the backbone, that layers stop to learn. Where a trial is expected to cost less so.
        """
        from autoglm.search.refresh import FREEZING, REHEARSAL

        training, pruned = self._settings.training, self._pruned
        asked = {each.key for each in pruned.dimensions} | pruned.fixed.keys()
        if start == "stable":
            share = self._settings.search.rehearsal
            less: dict[str, Any] = {REHEARSAL: share}
            is_open = share < training.rehearsal and REHEARSAL not in asked
        else:
            less = {FREEZING: "progressive"}
            is_open = training.freezing == "auto" and FREEZING not in asked
        if not is_open or not self.allows({**params, **less}):
            return {}
        return less if self.cost({**params, **less}) < self.cost(params) else {}


def _event_of(refresh: Refresh) -> dict[str, Any]:
    from autoglm.search.refresh import said_of

    said = to_json(refresh)
    return {"kind": "refresh", **said, "trials": len(refresh.points), "said": said_of(said)}


def keep_spec(draft: RunSpec) -> None:
    """What a study alone asks, beside its decisions, so that a later one can be compared with it:
    as it began, whoever calls it again. `draft` is frozen: it holds no secrets.
    """
    path = Path(draft.folder) / SPEC
    if _read(path) is not None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{SPEC}.{os.getpid()}")
    staging.write_text(json.dumps(to_json(draft)), encoding="utf-8")
    staging.replace(path)


def _runs(app: App) -> set[str]:
    return {row["run_id"] for row in app.admission.rows()}


def spec_of(run_id: str, admission: Admission) -> RunSpec | None:
    """Of a run, or of a study alone; None where nothing is known of it (any more)."""
    is_run = any(row["run_id"] == run_id for row in admission.rows())
    if is_run:
        return completed(admission.spec(run_id))
    found = _read(admission.home / "runs" / run_id / SPEC)
    return None if found is None else completed(at_home(found, admission.home))


def _spec_of(run_id: str, app: App) -> RunSpec | None:
    return spec_of(run_id, app.admission)


def _read(path: Path) -> RunSpec | None:
    with contextlib.suppress(OSError, ValueError):
        return from_json(RunSpec, json.loads(path.read_text(encoding="utf-8")))
    return None


def _question(spec: RunSpec, *, like: RunSpec | None = None) -> Mapping[str, Any]:
    """What a study of this run asks, in keys that the spec `like` has too."""
    known = (like or spec).config
    asked = {
        section: {
            key: spec.config[section].get(key)
            for key in known[section]
            if key not in NO_QUESTION.get(section, ())
        }
        for section in ("model", "training", "search", "evaluate")
    }
    data = {key: spec.config["data"].get(key) for key in ("max_length", "min_rows")}
    code = [[file.name, file.digest] for file in spec.imports]
    now = spec.dataset
    # Other rows that validate would flatter what has learnt from them.
    parts = dict(now.split), now.split_column, now.split_time
    shape = now.task, now.outputs, now.text, now.label, now.label_separator, parts
    return {**asked, "data": data, "code": code, "shape": shape}


def _changed(earlier: RunSpec, spec: RunSpec) -> float | None:
    """Share of the rows that are new, gone or others; None when the old ones cannot be read."""
    now = spec.dataset
    if earlier.dataset.uri != now.uri:
        return None
    table = DeltaFeatureTable(now.uri, project=spec.project, key="", text=now.text, label=now.label)
    try:
        found = compare(table, earlier.dataset.version, now.version)
    except AutoGLMError:
        return None  # that version is gone: whoever cannot tell asks anew
    num = sum(map(len, (found.added, found.removed, found.changed, found.relabelled)))
    return num / max(1, now.rows)
