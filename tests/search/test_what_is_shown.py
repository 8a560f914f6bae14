"""What a study tells while it runs and after it: places, expectations and their reasons."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autoglm.cli.progress import Progress
from autoglm.search.constraints import read_constraints
from autoglm.search.page import page_of
from autoglm.search.report import report_of
from autoglm.state.event_log import EventLog
from search.numeric_runner import KEYS, NumericRunner
from search.studies import run


def test_a_study_says_what_each_trial_was_expected_to_cost_and_why(
    log: EventLog, runner: NumericRunner
) -> None:
    asked = runner.cost
    runner.cost = lambda chain: replace(  # type: ignore[method-assign]
        asked(chain), why=(f"{len(chain.stages)} stages", "<states> are kept")
    )
    result = run(log, runner, trials=2)
    report = report_of(log, "run-1", project="p")
    for trial, row in zip(result.trials, report["trials"], strict=True):
        assert trial.why == ("9 stages", "<states> are kept")
        assert row["why"] == [*trial.why]
        assert row["expected_cpu_seconds"] == trial.expected_cpu_seconds > 0
    assert "9 stages; &lt;states&gt; are kept" in page_of(report)


def test_a_study_whose_one_feasible_point_is_trained_keeps_its_result(
    log: EventLog, runner: NumericRunner
) -> None:
    constraints = read_constraints(["lr == 0.3"], KEYS)
    result = run(
        log, runner, trials=9, constraints=constraints, sampler="random",
        defaults={"training.lr": 0.3},
    )  # fmt: skip
    assert (result.stopped_by, len(result.trials)) == ("space", 1)


def test_progress_counts_trials_and_not_what_was_refused_or_repeated(
    log: EventLog, runner: NumericRunner
) -> None:
    events: list[Mapping[str, Any]] = []
    shown = io.StringIO()
    progress = Progress(shown)
    progress.on_event({"kind": "study", "study": "run-1", "trials": 6})

    def on_event(event: Mapping[str, Any]) -> None:
        events.append(event)
        progress.on_event(event)

    constraints = read_constraints(["lr <= 0.3"], KEYS)
    run(log, runner, trials=6, sampler="random", constraints=constraints, on_event=on_event)
    ended = [event for event in events if event["kind"] == "trial_finished"]
    assert sorted(event["place"] for event in ended) == [1, 2, 3, 4, 5, 6]
    assert max(event["number"] for event in ended) > 5  # refused points have numbers too
    words = shown.getvalue().split()
    places = {words[at + 1]: word for at, word in enumerate(words) if word.startswith("#")}
    assert places == {f"{event['place']}/6": f"#{event['number']}" for event in ended}
