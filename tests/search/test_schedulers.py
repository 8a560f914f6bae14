from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from autoglm.search.schedulers import Asha, Median
from autoglm.search.standing import Standing, to_be_ended
from autoglm.state.engine import open_state
from autoglm.state.event_log import EventLog
from search import numeric_runner
from search.numeric_runner import STEPS, NumericRunner
from search.studies import run

ASHA = Asha(3, 1)


def trial(number: int, num_stages: int, *scores: float, **facts: Any) -> Standing:
    at = facts.pop("at", range(1, len(scores) + 1))
    state = "complete" if max(at) == num_stages else "paused"
    return Standing(
        number=number, trial_id=number, state=state, params={}, target=0, cost=0.0, seconds=0.0,
        scores=dict(zip(at, scores, strict=True)), cpu_seconds=0.0, saved={},
        num_stages=num_stages, **facts,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("num_stages", "rungs"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 3)), (4, (1, 4)), (9, (1, 3, 9)), (27, (1, 3, 9, 27))],
)
def test_rungs_are_shares_of_a_trials_own_epochs(num_stages: int, rungs: tuple[int, ...]) -> None:
    assert ASHA.rungs(0, num_stages) == rungs


def test_no_rung_is_before_the_epochs_that_are_waited_for() -> None:
    assert Asha(3, 2).rungs(0, 9) == (3, 9)
    assert Asha(3, 9).rungs(0, 4) == (4,)


def test_asha_does_not_hold_the_end_of_short_trials_against_the_beginning_of_long_ones() -> None:
    short = [trial(number, 1, 0.9) for number in range(6)]
    long = [trial(10 + number, 9, 0.5 + number / 100) for number in range(3)]
    promoted = ASHA.promoted([*short, *long])
    assert promoted is not None
    assert promoted.number == 12


def test_asha_compares_equal_shares_of_schedules_of_different_length() -> None:
    # A third of three epochs and a third of nine; the best of the three goes on.
    there = [trial(0, 3, 0.5), trial(1, 9, 0.1, 0.7, at=(1, 3)), trial(2, 9, 0.1, 0.6, at=(1, 3))]
    promoted = Asha(3, 1).promoted([*there, trial(3, 9, 0.05), trial(4, 3, 0.4)])
    assert promoted is not None
    assert promoted.number in {1, 0}
    median = Median(1)
    others = [trial(number, 1, 0.9) for number in range(8)]
    assert median.verdict(trial(9, 4, 0.1), others) == "go_on"
    assert median.verdict(trial(9, 4, 0.1, 0.2), [trial(n, 2, 0.5) for n in range(4)]) == "stop"


def test_the_best_paused_trial_is_ended_though_a_shorter_one_that_is_complete_looks_better() -> (
    None
):
    paused = [trial(0, 3, 0.5), trial(1, 3, 0.6), trial(2, 9, 0.4)]
    short = trial(3, 1, 0.9)
    longest = to_be_ended(paused, [short])
    assert longest is not None
    assert longest.number == 2
    ended = trial(2, 9, 0.4, 0.7, at=(1, 9))
    assert to_be_ended(paused[:2], [short, ended]) is None
    weak = trial(2, 9, 0.4, 0.55, at=(1, 9))
    better = to_be_ended(paused[:2], [short, weak])
    assert better is not None
    assert better.number == 1


def test_with_epochs_in_the_space_long_trials_reach_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value jumps when the rate has come to rest, as with a real schedule."""

    def at_rest(params: Any, epoch: int) -> float:
        last = int(params["training.epochs"])
        gain = 0.3 if epoch == last else 0.1 * epoch / last
        return float(gain + last / 100 - 0.01 * math.fabs(params["training.lr"] - 0.3))

    monkeypatch.setattr(numeric_runner, "value_of", at_rest)
    log = EventLog(open_state(tmp_path / "state.db"))
    space = {"lr": {"uniform": [0.0, 1.0]}, "epochs": {"choice": [1, 9]}}
    result = run(
        log, NumericRunner(tmp_path / "stages"), trials=24, scheduler="asha", space=space,
        sampler="random",
    )  # fmt: skip
    complete = [t.num_steps // STEPS for t in result.trials if t.state == "complete"]
    assert complete.count(9) >= 1
    assert result.best.params["training.epochs"] == 9
