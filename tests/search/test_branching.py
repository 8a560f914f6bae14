"""Proposals that go on from a stored prefix: only where there is one, and each trained once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from autoglm.contracts.record import digest
from autoglm.contracts.stage_chain import Stage, StageChain
from autoglm.contracts.trial import StudyResult
from autoglm.errors import CancelledError
from autoglm.search.branching import Branches
from autoglm.search.constraints import read_constraints
from autoglm.search.report import report_of
from autoglm.state.event_log import EventLog
from search.numeric_runner import KEYS, STEPS, NumericRunner
from search.studies import opened, run

SPACE = {"lr": {"uniform": [0.0, 1.0]}, "epochs": {"choice": [1, 2, 4]}}


class SharingRunner(NumericRunner):
    """Rates do not depend on the number of epochs: a longer trial begins like a shorter one."""

    def plan(self, params: Mapping[str, Any]) -> StageChain:
        stages, parent = [], "start"
        early = {key: value for key, value in params.items() if key != "training.epochs"}
        for _ in range(int(params["training.epochs"])):
            key = digest(parent, early)
            stages.append(
                Stage(
                    key=key, parent=parent, settings=params, num_steps=STEPS, seed=0, data_order=""
                )
            )
            parent = key
        return StageChain(project="p", params=params, stages=tuple(stages))


def branches(log: EventLog, result: StudyResult) -> dict[int, int]:
    """Trial → the one that it branched off."""
    rows = report_of(log, result.study, project="p")["trials"]
    return {row["number"]: row["branch_of"] for row in rows if row["branch_of"] is not None}


def test_a_branch_has_the_early_settings_of_a_good_trial_and_pays_for_its_own_epochs_alone(
    log: EventLog, tmp_path: Path
) -> None:
    runner = SharingRunner(tmp_path / "stages")
    result = run(log, runner, trials=24, space=SPACE, branch=True)
    by_number = {trial.number: trial for trial in result.trials}
    found = branches(log, result)
    assert len(found) >= 4
    points = [tuple(sorted(trial.params.items())) for trial in result.trials]
    assert len(set(points)) == len(points) == 24
    for number, origin in found.items():
        mine, other = by_number[number], by_number[origin]
        assert mine.params["training.lr"] == other.params["training.lr"]
        assert mine.params["training.epochs"] != other.params["training.epochs"]
        assert mine.saved["stage_tree"] > 0
    stored = (runner.folder / "stored.log").read_text().split()
    assert len(stored) == len(set(stored)), "no epoch was trained twice"


def test_nothing_is_branched_off_where_no_stage_is_shared_or_nobody_wants_it(
    log: EventLog, tmp_path: Path
) -> None:
    plain = NumericRunner(tmp_path / "plain")
    asked: dict[str, Any] = {"trials": 20, "space": SPACE, "warm_start": False}
    wanted = run(log, plain, name="off", **asked)
    found = run(log, plain, name="on", branch=True, **asked)
    assert [t.params for t in found.trials] == [t.params for t in wanted.trials]
    sharing = SharingRunner(tmp_path / "sharing")
    off = run(log, sharing, name="x", **asked)
    assert branches(log, found) == branches(log, off) == {}


def test_a_study_that_was_stopped_between_branches_goes_on_as_if_it_had_not_been(
    log: EventLog, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"trials": 20, "space": SPACE, "branch": True, "warm_start": False}
    whole = run(log, SharingRunner(tmp_path / "whole"), name="whole", **asked)
    config = {**asked, "name": "broken"}
    for last in (11, 14, 17):
        cancel, seen = threading.Event(), [0]

        def step(last: int = last, cancel: Any = cancel, seen: list[int] = seen) -> None:
            seen[0] += 1
            if seen[0] > last:
                cancel.set()

        runner = SharingRunner(tmp_path / "broken", step=step)
        with pytest.raises(CancelledError):
            opened(log, runner, **config).run(cancel)
    again = run(log, SharingRunner(tmp_path / "broken"), **config)
    assert [t.params for t in again.trials] == [t.params for t in whole.trials]
    assert branches(log, again) == branches(log, whole) != {}


def test_without_a_complete_trial_there_is_nothing_to_branch_off(tmp_path: Path) -> None:
    assert Branches((), SharingRunner(tmp_path).plan, lambda _point: True).next([]) is None


def test_a_branch_keeps_the_constraints_of_the_space(log: EventLog, tmp_path: Path) -> None:
    few = read_constraints(["epochs <= 2"], KEYS)
    runner = SharingRunner(tmp_path / "stages")
    result = run(log, runner, trials=20, space=SPACE, branch=True, constraints=few)
    assert branches(log, result)
    assert all(trial.params["training.epochs"] <= 2 for trial in result.trials)
