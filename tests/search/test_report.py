from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest
import yaml

from autoglm.cli.plots import bar, step_plot
from autoglm.clock import SteeredClock
from autoglm.contracts.trial import Removal, StudyResult
from autoglm.errors import StorageError
from autoglm.loop.tuned import tuned_text
from autoglm.search.config import SearchConfig
from autoglm.search.page import page_of
from autoglm.search.report import report_of
from autoglm.search.results import Objective
from autoglm.search.space import read_space
from autoglm.search.study import Study
from autoglm.state.engine import open_state
from autoglm.state.event_log import EventLog
from search.numeric_runner import KEYS, STEPS, NumericRunner

SPACE = {
    "lr": {"loguniform": [1e-3, 1.0]},
    "dropout": {"uniform": [0.0, 0.5]},
    "optimizer": {"choice": ["<b>adamw</b>", {"name": "muon"}]},
}

REMOVED = Removal(key="model.conv.channels", by="task", value=8, evidence="<nobody> reads it")


def searched(log: EventLog, folder: Path, *, sought: Any = (), **config: Any) -> StudyResult:
    return Study(
        project="p", name="x", config=SearchConfig(**config), defaults={}, metric="accuracy",
        dimensions=read_space(SPACE, KEYS), objectives=sought, seed=1, log=log,
        runners=[NumericRunner(folder / "stages")], clock=SteeredClock(), on_event=lambda _event: None,
        removed=(REMOVED,),
    ).run(threading.Event())  # fmt: skip


def test_epochs_that_the_scheduler_left_out_are_saved_at_the_pace_of_the_others(
    log: EventLog, tmp_path: Path
) -> None:
    result = searched(log, tmp_path, trials=9, scheduler="asha")
    # The runner takes 1 + dropout seconds a step, and trains 9 epochs of STEPS.
    left = sum(
        (9 * STEPS - t.num_steps) * (1 + t.params["training.dropout"]) for t in result.trials
    )
    assert left > 0
    assert report_of(log, "", project="p")["saved"]["early_stop"] == pytest.approx(left)
    other = EventLog(open_state(tmp_path / "other.db"))
    searched(other, tmp_path / "other", trials=9)
    assert "early_stop" not in report_of(other, "", project="p")["saved"]


def test_a_report_is_what_the_study_found(log: EventLog, tmp_path: Path) -> None:
    result = searched(log, tmp_path, trials=27, scheduler="asha")
    report = report_of(log, "", project="p")
    assert report["best"]["number"] == result.best.number
    assert report["stopped_by"] == "trials"
    assert sum(report["states"].values()) == 27
    assert result.removed == (REMOVED,)
    assert report["removed"][0]["evidence"] == "<nobody> reads it"
    assert "&lt;nobody&gt; reads it" in page_of(report)
    moments = report["best_so_far"]
    assert [m["value"] for m in moments] == sorted({m["value"] for m in moments})
    assert [m["cpu_seconds"] for m in moments] == sorted(m["cpu_seconds"] for m in moments)
    assert moments[-1]["value"] == max(trial.value or 0 for trial in result.trials)
    assert report["cpu_seconds"] == pytest.approx(result.cpu_seconds)
    curves = {row["number"]: row["curve"] for row in report["trials"]}
    assert curves == {trial.number: dict(trial.curve) for trial in result.trials}


def test_importance_names_what_matters(log: EventLog, tmp_path: Path) -> None:
    searched(log, tmp_path, trials=40, sampler="random")
    importance = report_of(log, "x", project="p")["importance"]
    assert importance["training.lr"] > 0.5
    assert sum(importance.values()) == pytest.approx(1)


def test_the_page_is_well_formed_and_shows_no_text_as_markup(log: EventLog, tmp_path: Path) -> None:
    searched(log, tmp_path, trials=12, scheduler="asha")
    page = page_of(report_of(log, "x", project="<script>"))
    charts = re.findall("<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        assert minidom.parseString(chart).getElementsByTagName("polyline")
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;adamw" in page


def test_a_study_that_has_only_been_asked_is_shown_too(log: EventLog, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def killed(*_arguments: Any, **_named: Any) -> None:
        raise Killed

    study = Study(
        project="p", name="x", config=SearchConfig(), defaults={}, metric="accuracy",
        dimensions=read_space(SPACE, KEYS), seed=1, log=log, clock=SteeredClock(),
        runners=[NumericRunner(tmp_path, step=killed)], on_event=lambda _event: None,
    )  # fmt: skip
    with pytest.raises(Killed):
        study.run(threading.Event())
    report = report_of(log, "x", project="p")
    assert (report["best"], report["stopped_by"], report["states"]) == (None, "", {"asked": 6})
    assert "not ended yet" in page_of(report)


def test_the_front_of_several_objectives_is_a_table(log: EventLog, tmp_path: Path) -> None:
    sought = (Objective(name="accuracy", maximize=True), Objective(name="loss", maximize=False))
    result = searched(log, tmp_path, trials=9, sought=sought)
    report = report_of(log, "x", project="p")
    assert [point["number"] for point in report["pareto"]] == list(result.pareto)
    assert report["pareto"][0]["values"].keys() == {"accuracy", "loss"}
    assert "Pareto front" in page_of(report)


def test_no_study_is_said(log: EventLog) -> None:
    with pytest.raises(StorageError, match="no study yet") as caught:
        report_of(log, "", project="p")
    assert caught.value.exit_code == 2


def test_tuned_values_are_written_as_they_are() -> None:
    params = {
        "training.lr": 1e-05, "training.warmup": "5%", "model.attention": {"name": "top_k", "k": 8},
        "model.structure.layers": [0, 2], "training.optimizer": "${HOME}", "training.x": "no",
    }  # fmt: skip
    best = {"number": 3, "value": 0.5, "params": params}
    report = {
        "best": best, "trials": [1] * 4, "study": "run", "metric": "accuracy",
        "refresh": {"beside": [{"training.x": "no", "training.warmup": "5%"}, {}]},
        "axes": {"training.x": {}},
    }  # fmt: skip
    assert "warmup" not in yaml.safe_load(tuned_text(report))["training"], "no dimension asked it"
    read = yaml.safe_load(tuned_text({**report, "refresh": {}}))
    assert read["model"] == {
        "attention": {"name": "top_k", "k": 8},
        "structure": {"layers": [0, 2]},
    }
    assert read["training"]["warmup"] == "5%"
    assert read["training"]["x"] == "no"
    assert read["training"]["optimizer"] == "$${HOME}"
    assert float(read["training"]["lr"]) == 1e-05


def test_a_plot_of_text_rises_where_the_value_does() -> None:
    lines = step_plot([(1.0, 0.5), (3.0, 0.9)], end=4.0, x_label="s", y_label="accuracy")
    assert "0.9000" in lines[2]
    assert lines[2].index("●") > lines[-2].index("●")
    assert step_plot([], end=1.0, x_label="s", y_label="v") == []
    assert step_plot([(0.0, 1.0)], end=0.0, x_label="s", y_label="v")
    assert (bar(0), len(bar(1)), bar(0.5, 2)) == ("", 24, "█")
