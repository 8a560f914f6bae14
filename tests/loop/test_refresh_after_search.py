"""A study of `autoglm search run` answers the run that follows it."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.stage_chain import Cost, StageChain
from autoglm.contracts.trial import StudyResult
from autoglm.errors import TrainingError
from autoglm.loop import run_to_candidate
from autoglm.loop.app import App, ignore
from autoglm.loop.change_to_dataset import collect_changes, describe_dataset
from autoglm.loop.dataset_to_run import draft_spec, trigger_event
from autoglm.loop.refreshing import SPEC, AsOfRun, find_refresh, keep_spec
from autoglm.loop.run_to_candidate import _said, pruned_space
from autoglm.project import Project
from autoglm.search.refresh import FREEZING, REHEARSAL, Refresh
from autoglm.search.report import find_study, is_open, report_of
from autoglm.search.warm_start import open_study
from autoglm.settings import completed, from_snapshot, unfreeze
from search.numeric_runner import NumericRunner
from search.studies import run

SPACE = {"lr": {"uniform": [0.1, 0.9]}}
PROJECT = f"""
project: news
model: {{backbone: "package:x"}}
data: {{source: {{url: "sqlite:///a.db", table: t, key: id, cursor: at}}, text: body, label: topic}}
search: {{space: {json.dumps(SPACE)}}}
evaluate: {{metric: accuracy}}
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    (tmp_path / "autoglm.yaml").write_text(PROJECT)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("create table t (id integer primary key, body text, topic text, at int)")
        rows = [(f"text number {n}", ("sport", "money")[n % 2], n) for n in range(60)]
        connection.executemany("insert into t (body, topic, at) values (?, ?, ?)", rows)
    connection.close()
    project = Project(tmp_path)
    with project.own("test"):
        found = App(project=project)
        collect_changes(project, threading.Event(), ignore)
        yield found
        found.close()


def drafted(app: App, name: str) -> RunSpec:
    event = trigger_event(app, "manual", cause="c", reason="r")
    spec = draft_spec(event, describe_dataset(app.project), app)
    return replace(spec, run_id=name, folder=str(app.project.state / "runs" / name))


class Even(NumericRunner):
    """No way of training costs less."""

    starts_from_stable = False


class Runner(Even):
    def cost(self, chain: StageChain) -> Cost:
        """Half where layers stop to learn, or rows are left out."""
        is_less = FREEZING in chain.params or chain.params.get(REHEARSAL, 1.0) < 1
        share = 0.5 if is_less else 1.0
        found = super().cost(chain)
        return replace(found, cpu_seconds=share * found.cpu_seconds)


def asked(
    app: App, spec: RunSpec, *, allows: Callable[[Mapping[str, Any]], bool] = lambda _params: True
) -> Refresh | None:
    settings: Any = from_snapshot(spec.config)
    pruned = pruned_space(settings, _said(spec))
    runner = Runner(app.project.state / "computed")
    return find_refresh(spec, settings, pruned, app, runner=runner, allows=allows)


def change_a_row(app: App) -> None:
    with sqlite3.connect(app.project.folder / "a.db") as connection:
        connection.execute("update t set body = 'another text', at = 99 where id = 1")
    connection.close()
    collect_changes(app.project, threading.Event(), ignore)


def test_what_a_study_alone_found_is_tried_first_by_the_run_behind_it(
    app: App, tmp_path: Path
) -> None:
    alone = drafted(app, "alone-1")
    study = run(
        app.log, NumericRunner(tmp_path / "stages"), name=alone.run_id, space=SPACE, trials=4
    )
    assert asked(app, drafted(app, "run-1")) is None  # nobody knows what it asked
    keep_spec(alone)
    same = asked(app, drafted(app, "run-1"))
    assert same is not None
    assert (same.of, same.changed, same.value) == ("alone-1", 0.0, study.best.value)
    change_a_row(app)
    other = asked(app, drafted(app, "run-2"))
    assert other is not None
    assert other.changed == pytest.approx(1 / 60)
    assert other.points[0]["training.lr"] == study.best.params["training.lr"]

    spec = drafted(app, "run-3")
    training = {**spec.config["training"], "epochs": 9}
    question = replace(spec, config={**spec.config, "training": training})
    assert asked(app, question) is None  # another question
    keep_spec(replace(alone, config=question.config))  # called again, it is what it was
    assert asked(app, spec) is not None
    (Path(alone.folder) / SPEC).write_text("{half")
    assert asked(app, spec) is None
    keep_spec(alone)
    assert asked(app, spec) is not None


def test_layers_stop_to_learn_where_the_project_leaves_it_open_and_it_is_cheaper(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = drafted(app, "alone-1")
    run(app.log, NumericRunner(tmp_path / "s"), name=alone.run_id, space=SPACE, trials=4)
    keep_spec(alone)
    open_to_it = asked(app, drafted(app, "run-1"))
    assert open_to_it is not None
    assert open_to_it.beside == ({FREEZING: "progressive"}, {})
    against = asked(app, drafted(app, "run-4"), allows=lambda params: FREEZING not in params)
    assert against is not None
    assert against.beside == ()  # search.constraints have no exception

    never = {**alone.config, "training": {**alone.config["training"], "freezing": "none"}}
    (Path(alone.folder) / SPEC).unlink()
    keep_spec(replace(alone, config=never))
    refused = asked(app, replace(drafted(app, "run-2"), config=never))
    assert refused is not None
    assert (len(refused.points), refused.beside) == (1, ())
    monkeypatch.setattr(Runner, "cost", NumericRunner.cost)
    (Path(alone.folder) / SPEC).unlink()
    keep_spec(alone)
    no_cheaper = asked(app, drafted(app, "run-3"))
    assert no_cheaper is not None
    assert no_cheaper.beside == ()


def as_of(app: App, spec: RunSpec, runner: Any) -> AsOfRun:
    settings: Any = from_snapshot(spec.config)
    pruned = pruned_space(settings, _said(spec))
    return AsOfRun(spec, settings, pruned, app, runner=runner, allows=lambda _p: True)


def test_a_run_whose_candidate_failed_a_gate_or_was_taken_back_was_refused(
    app: App, tmp_path: Path
) -> None:
    given = as_of(app, drafted(app, "run-9"), Even(tmp_path / "s"))
    for name, rollout in (
        ("run-1", {"verdict": "Failed"}), ("run-2", {"verdict": "Successful"}), ("run-3", None),
    ):  # fmt: skip
        app.log.append(f"run/{name}", "finished", {"status": "succeeded", "rollout": rollout})
    refused = [given.was_refused(f"run-{n}") for n in (1, 2, 3, 4)]
    assert refused == [True, False, None, None]


def test_what_a_trial_costs_is_asked_of_its_whole_settings_and_is_endless_where_none_can_tell(
    app: App, tmp_path: Path
) -> None:
    class Asking(Even):
        def plan(self, params: Mapping[str, Any]) -> StageChain:
            if "training.dropout" in params:
                raise TrainingError("it cannot be planned.", code="training.any")
            return super().plan(params)

    spec = drafted(app, "run-1")
    given = as_of(app, spec, Asking(tmp_path / "s"))
    point = {"training.lr": 0.5, "training.epochs": 3}
    assert 0 < given.cost(point) < math.inf
    assert given.cost({**point, "training.dropout": 0.1}) == math.inf
    given._pruned = replace(given._pruned, fixed={"training.epochs": 6})
    assert given.cost({"training.lr": 0.5}) == 2 * as_of(app, spec, Even(tmp_path / "s")).cost(
        point
    )


def test_over_folds_all_rows_that_do_not_test_say_what_a_value_may_be(
    app: App, tmp_path: Path
) -> None:
    alone = drafted(app, "alone-1")
    run(app.log, NumericRunner(tmp_path / "s"), name=alone.run_id, space=SPACE, trials=4)
    keep_spec(alone)
    whole = asked(app, drafted(app, "run-1"))
    folded = {**alone.config, "search": {**alone.config["search"], "folds": 3}}
    (Path(alone.folder) / SPEC).unlink()
    keep_spec(replace(alone, config=folded))
    over = asked(app, replace(drafted(app, "run-2"), config=folded))
    assert whole is not None
    assert over is not None
    assert whole.value - whole.enough > 1.5 * (over.value - over.enough)


def test_a_spec_of_an_earlier_version_asked_with_the_defaults_of_its_new_keys(
    app: App, tmp_path: Path
) -> None:
    alone = drafted(app, "alone-1")
    old = {k: v for k, v in alone.config["training"].items() if k != "freezing"}
    run(app.log, NumericRunner(tmp_path / "s"), name=alone.run_id, space=SPACE, trials=4)
    earlier = replace(alone, config={**alone.config, "training": old})
    keep_spec(earlier)
    assert completed(earlier).config == alone.config
    assert unfreeze(earlier, app.project.config).config["training"]["freezing"] == "auto"
    assert asked(app, drafted(app, "run-1")) is not None
    said = {**alone.config["training"], "freezing": "progressive"}
    other = replace(drafted(app, "run-2"), config={**alone.config, "training": said})
    assert asked(app, other) is None, "another question"


def test_from_stable_rows_are_left_out_where_the_project_leaves_it_open_and_it_is_cheaper(
    app: App, tmp_path: Path
) -> None:
    spec = drafted(app, "run-1")

    def beside(
        search: Any = (), training: Any = (), *, allowed: bool = True, is_cheaper: bool = True
    ) -> Any:
        runner = (Runner if is_cheaper else Even)(tmp_path / "s")
        config = {
            **spec.config,
            "search": {**spec.config["search"], **dict(search)},
            "training": {**spec.config["training"], **dict(training)},
        }
        settings: Any = from_snapshot(config)
        pruned = pruned_space(settings, _said(replace(spec, config=config)))
        given = AsOfRun(spec, settings, pruned, app, runner=runner, allows=lambda _p: allowed)
        return given.cheaper("stable", {"training.lr": 0.5})

    assert beside() == {REHEARSAL: 0.1}
    assert beside({"rehearsal": 0.5}) == {REHEARSAL: 0.5}
    assert beside({"rehearsal": 1.0}) == {}
    assert beside(training={"rehearsal": 0.05}) == {}, "every trial leaves out more"
    assert (
        beside({"space": {"lr": {"uniform": [0.1, 1]}, "rehearsal": {"choice": [0.5, 1.0]}}}) == {}
    )
    assert beside(allowed=False) == {}
    assert beside(is_cheaper=False) == {}, "all rows cost no more"


def test_what_is_kept_of_a_study_alone_holds_no_secret(app: App) -> None:
    said = {"data.source.url": "postgresql://me:hush-hush@server/rows"}
    secretive = replace(app, project=app.project.with_values(said))
    draft = drafted(secretive, "alone-2")
    assert draft.secrets
    keep_spec(draft)
    files = [*Path(draft.folder).iterdir()]
    assert [path.name for path in files] == [SPEC]
    assert "hush-hush" not in files[0].read_text()


def search(
    app: App, monkeypatch: pytest.MonkeyPatch, name: str, worker: Any, **config: Any
) -> StudyResult:
    """A study of the name by this worker, of four trials."""
    monkeypatch.setattr(run_to_candidate, "probe_evaluators", lambda *_asked: None)
    monkeypatch.setattr(App, "trainers", lambda *_asked, **_more: [])
    monkeypatch.setattr(run_to_candidate, "open_trainers", lambda *_asked: [worker])
    spec = drafted(app, name)
    said = {**spec.config["search"], "trials": 4, **config}
    spec = replace(spec, config={**spec.config, "search": said})
    keep_spec(spec)
    return run_to_candidate.search(spec, from_snapshot(spec.config), app)


@pytest.mark.parametrize("says", [(), ("training.freezing != 'progressive'",)])
def test_a_run_asks_its_constraints_about_the_refresh_and_tells_its_worker_how_many_points_it_has(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: tuple[str, ...]
) -> None:
    told: list[int] = []

    class Worker(Runner):
        def begin_study(self, *, num_alone: int) -> None:
            told.append(num_alone)

    def searched(name: str) -> Any:
        return search(app, monkeypatch, name, Worker(tmp_path / name), constraints=list(says))

    searched("alone-1")
    found = searched("alone-2")
    assert found.stopped_by == "refresh"
    is_freezing = FREEZING in found.best.params
    assert is_freezing == (not says)
    assert told == [0, 1 if says else 2]


@pytest.mark.parametrize("is_stable", [True, False])
def test_a_study_says_where_its_trials_began(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_stable: bool
) -> None:
    class Worker(Even):
        starts_from_stable = is_stable

        def begin_study(self, *, num_alone: int) -> None:
            del num_alone

    search(app, monkeypatch, "alone-1", Worker(tmp_path / "s"))
    study = open_study(app.log, "alone-1")
    assert study is not None
    assert study.user_attrs["began_at"] == ("stable" if is_stable else "backbone")


def test_a_study_whose_workers_die_says_so_and_hides_no_finished_one(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker(Runner):
        is_dying = False

        def begin_study(self, *, num_alone: int) -> None:
            del num_alone

        def advance(self, *asked: Any, **more: Any) -> Any:
            if self.is_dying:
                raise TrainingError("it died.", code="training.worker_died", retryable=True)
            return super().advance(*asked, **more)

    worker = Worker(tmp_path / "s")
    search(app, monkeypatch, "alone-1", worker)
    worker.is_dying = True
    with pytest.raises(TrainingError, match="it died"):
        search(app, monkeypatch, "alone-2", worker, warm_start=False)
    assert find_study(app.log) == "alone-1"
    assert not is_open(app.log)
    assert report_of(app.log, "alone-2", project="p")["failed"] == "training.worker_died: it died."
    worker.is_dying = False
    assert search(app, monkeypatch, "alone-2", worker, warm_start=False).stopped_by == "trials"
    assert find_study(app.log) == "alone-2"
