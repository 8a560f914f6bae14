from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from autoglm.errors import CancelledError, TrainingError
from autoglm.state.event_log import EventLog
from search.numeric_runner import NumericRunner
from search.studies import opened, run

LONG = 60.0


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., NumericRunner]:
    return lambda step=lambda: None: NumericRunner(tmp_path / "stages", step=step)


def died(after: Callable[[], None]) -> Callable[[], None]:
    """A step at which a worker dies, once."""
    times: list[int] = []

    def step() -> None:
        if not times:
            times.append(1)
            after()
            raise TrainingError("it died.", code="training.worker_died", retryable=True)

    return step


def test_two_workers_train_at_the_same_time(log: EventLog, make: Any) -> None:
    # Each step waits for one of the other worker: alone none would ever pass.
    both = threading.Barrier(2)
    step = lambda: both.wait(LONG) and None  # noqa: E731
    result = run(log, make(step), make(step), trials=6, scheduler="none")
    assert [trial.state for trial in result.trials] == ["complete"] * 6


@pytest.mark.parametrize("scheduler", ["none", "median", "asha", "hyperband"])
def test_each_trial_of_two_workers_is_there_once(
    log: EventLog, make: Any, scheduler: str, tmp_path: Path
) -> None:
    result = run(log, make(), make(), trials=24, scheduler=scheduler)
    assert [trial.number for trial in result.trials] == list(range(24))
    assert len({str(trial.params) for trial in result.trials}) == 24
    stored = (tmp_path / "stages" / "stored.log").read_text().split()
    assert len(stored) == len(set(stored))
    assert result.best.value == max(t.value for t in result.trials if t.state == "complete")


def test_a_worker_that_dies_costs_its_own_step_and_no_other(log: EventLog, make: Any) -> None:
    at_work, other_may_go_on = threading.Event(), threading.Event()

    def of_the_other() -> None:
        at_work.set()
        assert other_may_go_on.wait(LONG)

    def when_the_other_works() -> None:
        assert at_work.wait(LONG)
        threading.Timer(0.2, other_may_go_on.set).start()  # the other ends after this death

    dying = died(when_the_other_works)
    with pytest.raises(TrainingError) as caught:
        run(log, make(dying), make(of_the_other), trials=6)
    assert caught.value.retryable
    again = make()
    result = run(log, again, trials=6)
    assert [trial.state for trial in result.trials] == ["complete"] * 6
    # What the other had in hand was recorded: it is not asked for a second time.
    assert len(again.advanced) == 5


def test_the_cpu_budget_counts_what_is_being_trained(log: EventLog, make: Any) -> None:
    # One trial costs 27; a second beside it is paid for, a third and fourth are not.
    result = run(log, make(), make(), trials=24, cpu_budget=timedelta(seconds=60))
    assert len([t for t in result.trials if t.state == "complete"]) <= 3
    assert result.stopped_by == "cpu_budget"


def test_cancelling_a_study_of_two_workers_waits_for_both_and_it_goes_on(
    log: EventLog, make: Any
) -> None:
    cancel = threading.Event()

    class Cancelled(NumericRunner):
        def advance(self, chain: Any, to_step: int, *, cancel: threading.Event) -> Any:
            while not cancel.is_set():
                time.sleep(0.01)
            raise CancelledError("training was stopped.")

    def stopping() -> None:
        cancel.set()

    first, second = make(stopping), Cancelled(make().folder)
    with pytest.raises(CancelledError):
        opened(log, first, second, trials=6).run(cancel)
    assert not [t for t in threading.enumerate() if t.name.startswith("trial")]
    result = run(log, make(), make(), trials=6)
    assert [trial.state for trial in result.trials] == ["complete"] * 6
