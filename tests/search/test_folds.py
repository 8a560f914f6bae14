from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoglm.contracts.stage_chain import FOLD, Progress, StageChain
from autoglm.errors import SearchError
from autoglm.search.folds import interval_of
from autoglm.search.report import report_of
from autoglm.state.event_log import EventLog
from search.numeric_runner import STEPS, NumericRunner, value_of
from search.studies import run

# What a fold adds to a trial's value.
WORTH = {"1/3": -0.02, "2/3": 0.0, "3/3": 0.05}


class Folded(NumericRunner):
    """Each fold is worth something else; `without` is one that has no value."""

    without = ""

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        done = super().advance(chain, to_step, cancel=cancel)
        fold = chain.params[FOLD]
        value = done.metrics["accuracy"] + WORTH[fold]
        metrics: Mapping[str, float] = {"accuracy": value, "loss": 1 - value}
        if fold == self.without:
            metrics = {"accuracy": math.nan, "loss": 1.0}
        return replace(done, metrics=metrics)


@pytest.fixture
def runner(tmp_path: Path) -> Folded:
    return Folded(tmp_path / "stages")


def test_a_trial_is_the_mean_of_its_folds_with_an_interval(log: EventLog, runner: Folded) -> None:
    result = run(log, runner, trials=4, folds=3)
    for trial in result.trials:
        values = [value_of(trial.params, 9) + worth for worth in WORTH.values()]
        assert [fold["accuracy"] for fold in trial.folds] == pytest.approx(values)
        assert trial.value == pytest.approx(sum(values) / 3)
        assert FOLD not in trial.params
        assert trial.num_steps == 3 * 9 * STEPS
        low, high = trial.interval
        # Student's t with 2 degrees of freedom: 4.303.
        assert (high - low) / 2 == pytest.approx(4.3027 * 0.036056 / math.sqrt(3), rel=1e-3)
        assert (high + low) / 2 == pytest.approx(trial.value)
    shown = report_of(log, "run-1", project="p")["best"]
    assert shown["interval"] == list(result.best.interval)


@pytest.mark.parametrize("scheduler", ["median", "asha"])
def test_rungs_are_judged_when_all_folds_are_there(
    log: EventLog, runner: Folded, scheduler: str
) -> None:
    result = run(log, runner, trials=9, folds=3, scheduler=scheduler)
    stored = (runner.folder / "stored.log").read_text().split()
    assert len(stored) == len(set(stored)) == sum(t.num_steps // STEPS for t in result.trials)
    assert all(len(trial.folds) == 3 for trial in result.trials)


def test_a_fold_without_a_value_is_undefined_and_no_0(log: EventLog, runner: Folded) -> None:
    runner.without = "2/3"
    with pytest.raises(SearchError, match="has no accuracy on fold 2"):
        run(log, runner, trials=4, folds=3)


def test_folds_are_a_part_of_what_a_study_asks(log: EventLog, runner: Folded) -> None:
    run(log, runner, trials=2, folds=3)
    with pytest.raises(SearchError, match="another folds") as caught:
        run(log, runner, trials=2, folds=2)
    assert caught.value.code == "search.other_space"


def test_one_fold_is_refused(log: EventLog, runner: Folded) -> None:
    with pytest.raises(SearchError, match="leaves no rows") as caught:
        run(log, runner, trials=2, folds=1)
    assert (caught.value.code, caught.value.exit_code) == ("search.folds", 2)


def test_what_is_undefined_has_no_interval() -> None:
    folds: list[dict[str, Any]] = [{"f1": 0.5}, {"f1": math.nan}]
    assert interval_of("f1", folds) == []
    assert interval_of("f1", folds[:1]) == []
