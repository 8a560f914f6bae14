"""What a study begins with, and that it begins nothing its budget does not pay for."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest

from autoglm.clock import SteeredClock
from autoglm.contracts.stage_chain import Progress
from autoglm.contracts.trial import StudyResult
from autoglm.errors import TrainingError
from autoglm.plugins import registry
from autoglm.search.affordable import next_affordable
from autoglm.search.config import SearchConfig
from autoglm.search.constraints import read_constraints
from autoglm.search.costs import Trainings
from autoglm.search.first_points import first_points, nearest
from autoglm.search.space import read_space
from autoglm.search.standing import Standing
from autoglm.state.event_log import EventLog
from search.numeric_runner import STEPS, NumericRunner
from search.studies import run

LAYERS, EPOCHS, LR = "training.trainable_layers", "training.epochs", "training.lr"
SPACE = {
    "lr": {"loguniform": [1e-5, 1e-3]},
    "trainable_layers": {"choice": [0, 1, 2, 6]},
    "epochs": {"choice": [1, 2, 4]},
    "optimizer": {"choice": ["adamw", "muon"]},
}
OWN: dict[str, Any] = {LR: 2e-4, LAYERS: 2, EPOCHS: 3, "training.optimizer": "lion"}
LONG = {"lr": {"uniform": [0.0, 1.0]}, "epochs": {"choice": [1, 2, 9]}}
SHORT = {LR: 0.4, EPOCHS: 1}


def points(
    space: dict[str, Any], own: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    keys = [LR, LAYERS, EPOCHS, "training.optimizer"]
    return first_points(read_space(space, keys), own)


def test_the_first_point_is_the_projects_own_with_numbers_moved_into_the_space() -> None:
    first, _reach = points(SPACE, OWN)
    assert first == {
        LR: 2e-4,
        LAYERS: 2,
        EPOCHS: 4,
    }  # 3 lies between: the higher; no such optimizer
    assert points({"lr": {"uniform": [1e-3, 1e-2]}}, {LR: 2e-4}) == ({LR: 1e-3}, [])


def test_the_second_point_reaches_furthest_at_a_smaller_rate_the_third_is_half_as_long() -> None:
    first, reaches = points(SPACE, OWN)
    words = {**SPACE, "epochs": {"choice": ["few", "many"]}}
    assert [EPOCHS in reach for reach in points(words, OWN)[1]] == [False, False]
    slower = pytest.approx(2e-4 / math.sqrt(3))
    assert reaches == [{**first, LAYERS: 6, LR: slower}, {**first, LAYERS: 6, EPOCHS: 2}]
    assert points({k: v for k, v in SPACE.items() if k != "epochs"}, OWN)[1] == [
        {LAYERS: 6, LR: slower}, {LAYERS: 6, LR: 2e-4},
    ]  # fmt: skip
    assert points(SPACE, {**OWN, LAYERS: 6})[1] == []  # nothing reaches further
    # The first point was moved to as many layers and epochs, at a rate that was meant for fewer.
    first, reaches = points({**SPACE, "trainable_layers": {"choice": [6]}}, OWN)
    assert first == {LR: 2e-4, LAYERS: 6, EPOCHS: 4}
    assert reaches == [{**first, LR: slower}, {**first, EPOCHS: 2}]
    moved = {**SPACE, "trainable_layers": {"choice": [6]}, "epochs": {"choice": [4]}}
    assert points(moved, OWN)[1] == [{**first, LR: slower}]
    assert points({**moved, "lr": {"uniform": [2e-4, 1e-3]}}, OWN)[1] == []  # no smaller rate
    _first, (reach, _short) = points({**SPACE, "lr": {"uniform": [1.8e-4, 1e-3]}}, OWN)
    assert reach[LR] == 1.8e-4
    (reach,) = points({"trainable_layers": SPACE["trainable_layers"]}, OWN)[1]
    assert reach == {LAYERS: 6}
    head_only = {LR: 2e-4, LAYERS: 0, EPOCHS: 4}
    assert points(SPACE, head_only)[1] == [{**head_only, LAYERS: 6}]


def test_room_is_kept_for_all_that_reach_furthest_while_they_can_be_paid_for() -> None:
    def of(number: int, cost: float, *, has_room: bool = False) -> Standing:
        return Standing(
            number=number, trial_id=number, state="asked", params={}, scores={}, target=0,
            cost=cost, seconds=0.0, cpu_seconds=0.0, saved={}, has_room=has_room,
        )  # fmt: skip

    done = replace(of(0, 1.0), state="complete", scores={1: 0.5}, cpu_seconds=1.0)
    asked = [of(1, 9.0, has_room=True), of(2, 9.0, has_room=True), of(3, 4.0)]
    begun: dict[float, int | None] = {}
    for budget in (5.0, 9.0, 14.0, 18.0, 23.0):
        config = SearchConfig(cpu_budget=timedelta(seconds=1 + budget))
        found = next_affordable(asked, [done], config, Trainings(), seconds_left=99.0)
        begun[budget] = None if found is None else found.number
    assert begun == {5.0: 3, 9.0: 1, 14.0: 3, 18.0: 1, 23.0: 3}

    # Before the first value time says nothing; expected costs say it from the start.
    first: dict[float, int] = {}
    for num in (0.3, 1.0, 2.0, 2.5):
        config, bound = SearchConfig(cpu_budget=timedelta(seconds=1)), Trainings(num=num, unit=9.0)
        found = next_affordable(asked, [], config, bound, seconds_left=1.0)
        assert found is not None
        first[num] = found.number
    assert first == {0.3: 3, 1.0: 1, 2.0: 1, 2.5: 3}


@pytest.mark.parametrize(
    ("space", "value", "point"),
    [
        ({"quniform": [0.0, 1.0, 0.25]}, 0.9, 1.0),
        ({"quniform": [0.0, 1.0, 0.25]}, 7, 1.0),
        ({"uniform": [0.1, 0.5]}, 0.0, 0.1),
        ({"choice": [1.0, 2.0]}, 1.5, 2.0),
        ({"choice": ["a", True]}, 0.15, None),
        ({"uniform": [0.1, 0.5]}, "much", None),
        ({"uniform": [0.1, 0.5]}, True, None),
    ],
)
def test_the_nearest_point_of_a_dimension(space: dict[str, Any], value: Any, point: Any) -> None:
    (dimension,) = read_space({"lr": space}, [LR])
    assert nearest(dimension, value) == point


def test_cheap_trials_leave_room_for_the_one_that_reaches_furthest(
    log: EventLog, runner: NumericRunner
) -> None:
    cpu_budget = timedelta(seconds=15 * STEPS)
    result = run(log, runner, trials=50, space=LONG, defaults=SHORT, cpu_budget=cpu_budget)
    epochs = [stage for _lr, stage in runner.advanced]
    assert epochs.count(9) == 1
    assert epochs[: epochs.index(9)] == sorted(epochs[: epochs.index(9)])
    assert epochs.index(9) > 2
    assert 10 * STEPS < result.cpu_seconds <= 15 * STEPS
    assert result.stopped_by == "cpu_budget"


def test_without_a_bound_all_are_tried_cheapest_first(log: EventLog, runner: NumericRunner) -> None:
    result = run(log, runner, trials=8, space=LONG, defaults=SHORT)
    epochs = [stage for _lr, stage in runner.advanced]
    assert epochs[:6] == sorted(epochs[:6])
    assert 9 in epochs[:6]
    assert (result.stopped_by, len(result.trials)) == ("trials", 8)


@pytest.mark.parametrize("num_epochs", [1, 2, 5, 9, 12, 30])
def test_no_trial_is_begun_that_the_budget_does_not_pay_for(
    log: EventLog, runner: NumericRunner, num_epochs: int
) -> None:
    cpu_budget = timedelta(seconds=num_epochs * STEPS)
    result = run(log, runner, trials=50, space=LONG, defaults=SHORT, cpu_budget=cpu_budget)
    assert 0 < result.cpu_seconds <= cpu_budget.total_seconds()
    assert all(trial.state == "complete" for trial in result.trials)
    assert result.stopped_by == "cpu_budget"


def in_trainings(log: EventLog, folder: Path, num: float, **more: Any) -> StudyResult:
    """A study of trials of 1, 2 and 9 epochs, bounded by `num` trainings of 9."""
    price, space = more.pop("price", 1.0), more.pop("space", LONG)
    return run(
        log, NumericRunner(folder, price=price), name=folder.name, space=space, trials=50,
        full_trainings=num, warm_start=False, **{"defaults": SHORT, **more},
    )  # fmt: skip


@pytest.mark.parametrize("num", [0.5, 1.0, 2.5, 6.0])
def test_a_budget_in_trainings_tries_the_same_points_on_any_machine(
    log: EventLog, tmp_path: Path, num: float
) -> None:
    usual = in_trainings(log, tmp_path / "usual", num)
    for price in (0.3, 1.1, 30.0):
        other = in_trainings(log, tmp_path / f"at{price}", num, price=price)
        assert [t.params for t in other.trials] == [t.params for t in usual.trials]
        assert other.stopped_by == usual.stopped_by == "full_trainings"
    assert usual.cpu_seconds <= num * 9 * STEPS  # 9 epochs are a full training
    longest = max(trial.params[EPOCHS] for trial in usual.trials)
    assert (longest == 9) == (num >= 1)  # room is kept for it where it can be paid for


def test_what_is_stored_costs_nothing_but_a_full_training_is_still_a_whole_one(
    log: EventLog, tmp_path: Path
) -> None:
    stages = tmp_path / "stages"
    runner = NumericRunner(stages)
    said = {"space": LONG, "defaults": SHORT, "trials": 50, "full_trainings": 1.2}
    first = run(log, runner, name="first", warm_start=False, **said)
    again = run(log, runner, name="again", warm_start=False, **said)
    assert again.stopped_by == "full_trainings"
    stored = {str(t.params) for t in first.trials}
    paid = [t for t in again.trials if str(t.params) not in stored]
    assert 0 < sum(t.cpu_seconds for t in paid) <= 1.2 * 9 * STEPS


def test_a_full_training_is_the_projects_own_where_nothing_reaches_further_or_may(
    log: EventLog, tmp_path: Path
) -> None:
    space = {"lr": {"uniform": [0.0, 1.0]}, "dropout": {"choice": [0.0, 0.5]}}
    own = {LR: 0.4, "training.dropout": 0.5}
    alike = in_trainings(log, tmp_path / "alike", 3, space=space, defaults=own)
    assert 2 * 1.5 < alike.cpu_seconds / (9 * STEPS) <= 3 * 1.5  # dropout has its price here
    keys = [LR, EPOCHS]
    refused = in_trainings(
        log, tmp_path / "refused", 4,
        constraints=read_constraints(["training.epochs <= 2"], keys),
    )  # fmt: skip
    assert 3 * STEPS <= refused.cpu_seconds <= 4 * STEPS  # the project's own has one epoch
    assert refused.stopped_by == "full_trainings"


def test_a_part_that_asks_point_by_point_has_the_same_full_training(
    log: EventLog, tmp_path: Path
) -> None:
    with registry.registering_from("tests"):
        registry.register("sampler", "own", optuna.samplers.RandomSampler)
        found = in_trainings(log, tmp_path / "own", 2.0, sampler="own")
    assert 9 * STEPS < found.cpu_seconds <= 18 * STEPS


def test_of_several_workers_none_begins_what_a_budget_in_trainings_does_not_pay_for(
    log: EventLog, tmp_path: Path
) -> None:
    runners = [NumericRunner(tmp_path / "one") for _ in range(3)]
    found = run(log, *runners, trials=50, full_trainings=1)
    assert (len(found.trials), found.stopped_by) == (1, "full_trainings")


def test_trials_that_fail_have_spent_of_a_budget_in_trainings(
    log: EventLog, tmp_path: Path
) -> None:
    class Failing(NumericRunner):
        def advance(self, *asked: Any, **more: Any) -> Progress:
            if self.advanced:
                raise TrainingError("it diverged", code="training.diverged", next_step="Lower lr.")
            return super().advance(*asked, **more)

    found = run(log, Failing(tmp_path / "one"), trials=50, full_trainings=4)
    assert [t.state for t in found.trials] == ["complete", "failed", "failed", "failed"]
    assert found.stopped_by == "full_trainings"


def test_trials_that_pause_spend_of_a_budget_in_trainings_what_they_have_come_to(
    log: EventLog, runner: NumericRunner
) -> None:
    result = run(log, runner, trials=50, full_trainings=3, scheduler="asha")
    assert result.stopped_by == "full_trainings"
    # At most a rung beyond it, and the best one to its end.
    assert 3 * 9 * STEPS <= result.cpu_seconds <= 5 * 9 * STEPS
    assert len(result.trials) > 5


def test_what_is_stored_costs_nothing_and_is_all_tried(log: EventLog, tmp_path: Path) -> None:
    space = {"lr": {"choice": [0.1, 0.2, 0.3]}}
    for name in ("first", "again"):
        runner = NumericRunner(tmp_path / "one")
        found = run(log, runner, name=name, space=space, full_trainings=9, warm_start=False)
        assert (len(found.trials), found.stopped_by) == (3, "space")


def test_the_first_trial_is_run_whatever_the_budget(log: EventLog, runner: NumericRunner) -> None:
    result = run(log, runner, trials=50, cpu_budget=timedelta(seconds=1))
    assert (len(result.trials), result.stopped_by) == (1, "cpu_budget")


def test_wall_time_that_is_left_is_held_against_what_trials_have_taken(
    log: EventLog, runner: NumericRunner
) -> None:
    clock = SteeredClock()
    runner.step = lambda: clock.advance(2)  # for one CPU-second expected
    budget = timedelta(seconds=40 * STEPS)
    cut_off: list[Any] = []
    result = run(
        log, runner, trials=50, space=LONG, defaults=SHORT, budget=budget, clock=clock,
        on_event=lambda event: cut_off.append(event) if event["kind"] == "trial_cut_off" else None,
    )  # fmt: skip
    assert result.stopped_by == "budget"
    assert not cut_off
    assert 30 * STEPS < result.seconds <= 40 * STEPS
    assert 9 in [stage for _lr, stage in runner.advanced]


def test_a_killed_study_begins_no_more_than_its_budget_pays_for(
    log: EventLog, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def study(name: str, runner: NumericRunner) -> Any:
        return run(
            log, runner, name=name, trials=50, space=LONG, defaults=SHORT, warm_start=False,
            cpu_budget=timedelta(seconds=20 * STEPS),
        )  # fmt: skip

    whole = study("whole", NumericRunner(tmp_path / "whole"))
    killed = NumericRunner(tmp_path / "killed")
    num_steps = 0

    def step() -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps in {4, 20, 41}:
            raise Killed

    killed.step = step
    for _ in range(3):
        with pytest.raises(Killed):
            study("killed", killed)
    result = study("killed", killed)
    assert result.stopped_by == whole.stopped_by == "cpu_budget"
    assert all(trial.state == "complete" for trial in result.trials)
    assert whole.cpu_seconds - 9 * STEPS < result.cpu_seconds <= 20 * STEPS
    first = [trial.params for trial in whole.trials if trial.number < 6]
    assert [trial.params for trial in result.trials if trial.number < 6] == first


def test_trials_that_pause_are_begun_while_any_of_the_budget_is_left(
    log: EventLog, runner: NumericRunner
) -> None:
    cpu_budget = timedelta(seconds=12 * STEPS)
    result = run(log, runner, trials=50, cpu_budget=cpu_budget, scheduler="asha")
    assert result.stopped_by == "cpu_budget"
    assert result.best.value
