"""A trial that misses a constraint of evaluate.metrics is picked only where all do."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoglm.clock import SteeredClock
from autoglm.contracts.record import to_json
from autoglm.contracts.stage_chain import Cost, Progress, Stage, StageChain
from autoglm.contracts.trial import StudyResult
from autoglm.loop.run_to_candidate import bounds_of, evaluate
from autoglm.search.bounds import said_of
from autoglm.search.config import SearchConfig
from autoglm.search.page import page_of
from autoglm.search.report import report_of
from autoglm.search.space import read_space
from autoglm.search.study import Study
from autoglm.state.engine import open_state
from autoglm.state.event_log import EventLog


class Table:
    """A runner whose trials are worth what a table says."""

    def __init__(self, rows: dict[int, dict[str, float]]) -> None:
        self.rows = rows

    def plan(self, params: Any) -> StageChain:
        stage = Stage(
            key=str(params), parent="", settings=params, num_steps=1, seed=0, data_order=""
        )
        return StageChain(project="p", params=params, stages=(stage,))

    def cost(self, chain: StageChain) -> Any:
        return Cost(cpu_seconds=0.0, disk_bytes=0, num_steps=1, whole=0.0)

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        return Progress(
            key=chain.key, step=1, num_steps=1, metrics=self.rows[chain.params["training.epochs"]],
            cpu_seconds=1.0, reused_steps=0, folder="",
        )  # fmt: skip


def searched(
    folder: Path, rows: dict[int, dict[str, float]], roles: dict[str, Any], **more: Any
) -> StudyResult:
    """One trial for each number of epochs in `rows`."""
    space = {"epochs": {"choice": [*rows]}}
    settings: Any = SimpleNamespace(evaluate=SimpleNamespace(metrics=roles))
    return Study(
        project="p", name="run-1", config=SearchConfig(space=space, trials=len(rows), sampler="random"),
        dimensions=read_space(space, ["training.epochs"]), defaults={}, metric="accuracy", seed=1,
        runners=[Table(rows)], log=EventLog(open_state(folder / "state.db")), clock=SteeredClock(),
        bounds=bounds_of(settings), **{"on_event": lambda _event: None, **more},
    ).run(threading.Event())  # fmt: skip


@pytest.mark.parametrize(
    ("roles", "wanted"),
    [
        ({}, 4),
        ({"recall": "report"}, 1),
        ({"recall": {"at_least": 0.5}}, 2),
        ({"recall": {"at_least": 0.5}, "mistakes": {"at_most": 10}}, 3),
        ({"recall": {"at_least": 0.99}}, 1),
        ({"size_bytes": {"at_most": 1}}, 1),
    ],
)
def test_the_best_of_those_that_keep_the_constraints_is_picked(
    tmp_path: Path, roles: dict[str, Any], wanted: int
) -> None:
    nan = float("nan")
    rows = {
        1: {"accuracy": 0.9, "recall": 0.2, "mistakes": 0},
        2: {"accuracy": 0.8, "recall": 0.6, "mistakes": 20},
        3: {"accuracy": 0.7, "recall": 0.8, "mistakes": 5},
        4: {"accuracy": 0.95 if not roles else 0.1, "recall": nan, "mistakes": nan},
    }
    result = searched(tmp_path, rows, roles)
    assert len(result.trials) == 4
    assert result.best.params == {"training.epochs": wanted}


NEAR = {1: {"accuracy": 0.9, "recall": 0.25, "mistakes": 4.0},
        2: {"accuracy": 0.8, "recall": 0.5, "mistakes": 20.0}}  # fmt: skip


@pytest.mark.parametrize(
    ("roles", "rows", "said"),
    [
        (
            {"recall": {"at_least": 0.6}, "mistakes": {"at_most": 30}}, NEAR,
            "no trial keeps all constraints: recall at least 0.6, missed by all 2, at best 0.5"
            " (trial {2})",
        ),
        (
            {"recall": {"at_least": 0.4}, "mistakes": {"at_most": 10}}, NEAR,
            "no trial keeps all constraints together: recall at least 0.4, missed by 1 of 2, at best"
            " 0.5 (trial {2}); mistakes at most 10, missed by 1 of 2, at best 4 (trial {1})",
        ),
        (
            {"f2": {"at_least": 0.4}}, NEAR,
            "no trial keeps all constraints: f2 at least 0.4, missed by all 2, undefined",
        ),
    ],
)  # fmt: skip
def test_a_study_none_of_whose_trials_keeps_the_constraints_says_by_how_much(
    tmp_path: Path, roles: dict[str, Any], rows: dict[int, dict[str, float]], said: str
) -> None:
    events: list[Any] = []
    result = searched(tmp_path, rows, roles, on_event=events.append)
    number_of = {trial.params["training.epochs"]: trial.number for trial in result.trials}
    wanted = said.replace("{1}", str(number_of[1])).replace("{2}", str(number_of[2]))
    assert said_of(result.unmet) == wanted
    assert [e["said"] for e in events if e["kind"] == "constraints_unmet"] == [wanted]
    report = report_of(EventLog(open_state(tmp_path / "state.db")), "run-1", project="p")
    assert report["unmet"] == to_json(result.unmet)
    page = page_of(report)
    assert "Constraints that no trial keeps" in page
    assert all(f"<td>{each['metric']}</td>" in page for each in report["unmet"])
    assert report["constraints"].keys() == roles.keys()
    assert result.best.params == {"training.epochs": 1}  # still the best, for whoever looks


def test_a_run_whose_trials_all_miss_a_constraint_releases_nothing_and_says_which(
    tmp_path: Path,
) -> None:
    study = searched(tmp_path, NEAR, {"recall": {"at_least": 0.6}})
    app, spec = Judging(), SimpleNamespace(stable="")
    judged: Any = evaluate(spec, study, {"folder": "x"}, app)  # type: ignore[arg-type]
    assert judged["verdict"] == "Failed"  # though it passed on the test rows
    assert judged["reason"].startswith("constraint_missed on the validation rows: no trial keeps")
    assert "recall at least 0.6, missed by all 2, at best 0.5" in judged["reason"]
    kept = evaluate(spec, replace(study, unmet=()), {"folder": "x"}, app)  # type: ignore[arg-type]
    assert (kept["verdict"], kept["reason"]) == ("Successful", "first_release")


class Judging:
    """An app whose test rows are kind."""

    registry = SimpleNamespace(get=lambda _digest: None)

    def evaluate(self, *_arguments: Any, since: int | None, fits_floor: bool) -> dict[str, Any]:
        assert fits_floor
        return {"verdict": "Successful", "reason": "first_release"}
