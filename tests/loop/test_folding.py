"""Rows that cannot be dealt into so many folds are told of before anything is trained."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import autoglm
from autoglm.contracts.run_spec import RunSpec
from autoglm.errors import SearchError
from autoglm.loop.app import App, ignore
from autoglm.loop.change_to_dataset import collect_changes, describe_dataset
from autoglm.loop.dataset_to_run import draft_spec, trigger_event
from autoglm.loop.folding import probe_folds
from autoglm.plugins import registry
from autoglm.project import Project

PROJECT = """
project: news
model: {backbone: "package:x"}
data: {source: {url: "sqlite:///a.db", table: t, key: id, cursor: id}, text: body, label: topic,
  min_rows: 2}
"""


@pytest.fixture(autouse=True)
def rare_recall() -> Iterator[None]:
    """An evaluator that has no value on rows without the label `rare`."""
    before = dict(registry._registered)

    def recall(truth: list[str], said: list[str]) -> float | None:
        hits = [t == s for t, s in zip(truth, said, strict=True) if t == "rare"]
        return sum(hits) / len(hits) if hits else None

    autoglm.register("evaluator", "rare_recall", autoglm.make_evaluator(recall))
    yield
    registry._registered.clear()
    registry._registered.update(before)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """60 rows, of which 4 are `rare`."""
    folder = tmp_path_factory.mktemp("folding")
    (folder / "autoglm.yaml").write_text(PROJECT)
    labels = ["rare"] * 4 + ["sport", "money"] * 28
    with sqlite3.connect(folder / "a.db") as connection:
        connection.execute("create table t (id integer primary key, body text, topic text)")
        rows = [(f"text number {n}", label) for n, label in enumerate(labels)]
        connection.executemany("insert into t (body, topic) values (?, ?)", rows)
    connection.close()
    project = Project(folder)
    with project.own("test"):
        collect_changes(project, threading.Event(), ignore)
        app = App(project=project)
        event = trigger_event(app, "manual", cause="c", reason="r")
        return replace(draft_spec(event, describe_dataset(project), app), folder=str(folder))


def asked(spec: RunSpec, folds: int, metric: str = "macro_f1", **search: Any) -> str:
    config = {**spec.config, "search": {**spec.config["search"], "folds": folds, **search}}
    config["evaluate"] = {**spec.config["evaluate"], "metric": metric}
    return probe_folds(replace(spec, config=config))


def test_more_folds_than_rows_are_refused(spec: RunSpec) -> None:
    with pytest.raises(SearchError, match=r"search.folds is 61, and there are \d+ rows") as caught:
        asked(spec, 61)
    assert (caught.value.code, caught.value.exit_code) == ("search.folds", 2)


def test_folds_of_what_stable_has_learnt_from_are_refused(spec: RunSpec) -> None:
    model = {**spec.config["model"], "start_from": "stable"}
    with pytest.raises(SearchError, match="stable has learnt from the rows") as caught:
        asked(replace(spec, config={**spec.config, "model": model}), 3)
    assert (caught.value.code, caught.value.exit_code) == ("search.folds", 2)


def test_folds_without_a_rare_label_are_warned_of(spec: RunSpec) -> None:
    assert asked(spec, 2) == ""
    said = asked(spec, 12)
    assert "search.folds is 12, and of the rows to be dealt 'rare' has" in said
    assert "sport" not in said


@pytest.mark.parametrize("sought", [{"metric": "rare_recall"}, {"objectives": ["rare_recall"]}])
def test_a_metric_without_a_value_on_such_folds_is_refused(
    spec: RunSpec, sought: dict[str, Any]
) -> None:
    assert asked(spec, 2, **sought) == ""
    with pytest.raises(SearchError, match="where rare_recall has no value") as caught:
        asked(spec, 12, **sought)
    assert (caught.value.code, caught.value.exit_code) == ("search.folds", 2)
    assert "Set search.folds to" in caught.value.next_step
