"""A refresh from the backbone begins with the cheapest point that is as good as the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from autoglm.contracts.record import to_json
from autoglm.evaluation.roles import Role
from autoglm.search.refresh import refresh_of, said_of
from autoglm.search.space import read_space
from autoglm.search.standing import Standing
from autoglm.search.warm_start import hints, open_study
from autoglm.state.event_log import EventLog
from search.numeric_runner import KEYS, NumericRunner
from search.refreshes import (
    LAYERED,
    PROGRESSIVE,
    SPACE,
    Given,
    Rising,
    Unlike,
    asked_again,
    maybe,
    price_of,
    runner,
)
from search.studies import run


def test_from_the_backbone_the_cheapest_point_that_is_as_good_comes_first(
    log: EventLog, tmp_path: Path
) -> None:
    """As good but for the margin; the best point comes behind, where that is not enough."""
    found = run(log, Rising(tmp_path / "1"), trials=12, space=SPACE, start="backbone")
    assert {t.params["training.epochs"] for t in found.trials} == {1, 3, 9}
    refresh = asked_again(log, beside=PROGRESSIVE, price=price_of)
    assert [point["training.epochs"] for point in refresh.points] == [3, 9]
    assert (refresh.points[1], refresh.beside) == (found.best.params, (PROGRESSIVE, {}))
    assert "first by the cheapest point as good, with layers that stop" in said_of(to_json(refresh))
    said: dict[str, Any] = {"trials": 12, "space": SPACE}
    again = run(log, Rising(tmp_path / "2"), name="run-2", refresh_by=refresh, **said)
    assert (len(again.trials), again.stopped_by) == (1, "refresh")
    higher = replace(refresh, enough=0.81)
    both = run(log, Rising(tmp_path / "3"), name="run-3", refresh_by=higher, **said)
    assert (len(both.trials), both.stopped_by) == (2, "refresh")
    assert both.best.params == found.best.params
    same = asked_again(log, price=price_of, changed=0.0)
    assert same.points == (found.best.params,), "of the very rows the answer itself is tried"


def test_only_of_few_rows_a_standard_error_is_less_than_the_margin(
    log: EventLog, tmp_path: Path
) -> None:
    """Of 40,000 rows it is 0.002: one epoch fewer is worse by as much."""
    run(log, Rising(tmp_path / "1"), trials=12, space=SPACE, start="backbone")
    refresh = asked_again(log, price=price_of, num_rows=40_000)
    assert [point["training.epochs"] for point in refresh.points] == [9]


def test_of_what_is_no_share_the_margin_says_what_is_as_good(log: EventLog, tmp_path: Path) -> None:
    """Of 0.05 to 0.1, 0.017 to 0.033 and 0.006 to 0.011."""
    said: dict[str, Any] = {"trials": 12, "space": SPACE, "metric": "negative_mae"}
    best = run(log, Unlike(tmp_path / "1"), start="backbone", **said).best
    assert best.params["training.epochs"] == 9
    refresh = asked_again(log, price=price_of, metric="negative_mae")
    assert [point["training.epochs"] for point in refresh.points] == [9]
    wider = asked_again(log, price=price_of, metric="negative_mae", margin=0.03)
    assert [point["training.epochs"] for point in wider.points] == [3, 9]


@pytest.mark.parametrize("start", ["stable", "either", ""])
def test_a_cheaper_point_that_may_owe_its_value_to_stable_takes_no_place_of_the_best(
    log: EventLog, tmp_path: Path, start: str
) -> None:
    found = run(log, Rising(tmp_path / "1"), trials=12, space=SPACE, start=start)
    assert asked_again(log, price=price_of).points == (found.best.params,)


def test_to_a_start_that_does_not_know_the_rows_the_best_itself_is_tried(
    log: EventLog, tmp_path: Path
) -> None:
    found = run(log, Rising(tmp_path / "1"), trials=12, space=SPACE, start="backbone")
    refresh = asked_again(log, price=price_of, stable=True, knows=False)
    assert refresh.points == (found.best.params,)


def test_a_study_that_goes_on_behind_a_release_may_have_begun_at_either(
    log: EventLog, tmp_path: Path
) -> None:
    num: list[int] = []

    def die() -> None:
        num.append(1)
        if len(num) > 20:
            raise KeyboardInterrupt

    said: dict[str, Any] = {"trials": 12, "space": SPACE}
    with pytest.raises(KeyboardInterrupt):
        run(log, NumericRunner(tmp_path / "1", step=die), start="backbone", **said)
    run(log, Rising(tmp_path / "2"), start="stable", **said)
    study = open_study(log, "run-1")
    assert study is not None
    assert study.user_attrs["began_at"] == "either"
    assert len(asked_again(log, price=price_of).points) == 1


def test_where_a_study_began_stays_when_its_result_is_asked_for_again(
    log: EventLog, tmp_path: Path
) -> None:
    said: dict[str, Any] = {"trials": 12, "space": SPACE}
    run(log, Rising(tmp_path / "1"), start="backbone", **said)
    run(log, Rising(tmp_path / "1"), start="stable", **said)
    assert len(asked_again(log, price=price_of).points) == 2


def test_a_cheaper_point_that_is_refused_takes_no_place_of_the_best(
    log: EventLog, tmp_path: Path
) -> None:
    """By the constraints on points, or by those on what was measured."""
    said: dict[str, Any] = {"trials": 12, "space": SPACE, "start": "backbone"}
    found = run(log, Rising(tmp_path / "1"), **said)
    refresh = asked_again(log, price=price_of, allows=lambda p: p["training.epochs"] == 9)
    assert refresh.points == (found.best.params,)
    assert maybe(log, price=price_of, allows=lambda p: p["training.epochs"] == 3) is None
    few = [Role(name="loss", role="constraint", at_most=0.1961)]
    run(log, Rising(tmp_path / "2"), name="run-1b", bounds=few, **said)
    kept = asked_again(log, price=price_of, margin=0.1, only="run-1b")
    assert [point["training.epochs"] for point in kept.points] == [3, 9]
    none = [Role(name="loss", role="constraint", at_most=0.0)]
    run(log, Rising(tmp_path / "3"), name="run-1c", bounds=none, **said)
    assert maybe(log, price=price_of, only="run-1c") is None, "it has no answer"
    best_refused = [Role(name="loss", role="constraint", at_least=0.19)]
    second = run(log, Rising(tmp_path / "4"), name="run-1d", bounds=best_refused, **said).best
    again = asked_again(log, only="run-1d")
    assert (again.value, again.points) == (second.value, (second.params,))
    assert second.params["training.epochs"] == 3


def test_what_stops_to_learn_is_the_cheaper_point(log: EventLog, tmp_path: Path) -> None:
    run(log, Rising(tmp_path / "1"), trials=12, space=SPACE, start="backbone")
    asked: list[Any] = []

    class Asking(Given):
        def cheaper(self, _start: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
            asked.append(params["training.epochs"])
            return {}

    dimensions = read_space(SPACE, KEYS)
    found = refresh_of(
        log, "run-2", dimensions, Asking(price=price_of), metric="accuracy", num_rows=220,
        margin=0.01,
    )  # fmt: skip
    assert found is not None
    assert asked == [3]


def test_a_refresh_that_was_refused_is_followed_by_a_whole_study(
    log: EventLog, tmp_path: Path
) -> None:
    said: dict[str, Any] = {"trials": 6, "space": SPACE}
    run(log, runner(tmp_path / "1"), **said)
    run(log, runner(tmp_path / "2"), name="run-1b", refresh_by=asked_again(log), **said)
    assert asked_again(log).of == "run-1"
    assert maybe(log, refused={"run-1b": True}) is None
    run(log, runner(tmp_path / "3"), name="run-1c", refresh_by=asked_again(log), **said)
    assert maybe(log, refused={"run-1b": True}) is None, "nobody judged what came of run-1c"
    assert asked_again(log, refused={"run-1b": True, "run-1c": False}).of == "run-1"
    run(log, runner(tmp_path / "4"), name="run-1d", **said)
    assert asked_again(log, refused={"run-1b": True}).of == "run-1d"
    assert asked_again(log, refused={"run-1d": True}).of == "run-1d", "a whole study is no refresh"


def standing(number: int, state: Any) -> Standing:
    return Standing(
        number=number, trial_id=number, state=state, params={}, scores={}, target=0, cost=5.0,
        seconds=0.0, cpu_seconds=0.0, saved={},
    )  # fmt: skip


def test_an_idle_worker_begins_nothing_beside_what_may_be_the_answer(
    log: EventLog, tmp_path: Path
) -> None:
    run(log, Rising(tmp_path / "1"), trials=12, space=SPACE, start="backbone")
    refresh = asked_again(log, price=price_of)
    said: dict[str, Any] = {"trials": 12, "space": SPACE}
    several = [Rising(tmp_path / "2"), Rising(tmp_path / "2")]
    found = run(log, *several, name="run-2", refresh_by=refresh, **said)
    assert [trial.params["training.epochs"] for trial in found.trials] == [3]
    paid = replace(refresh, most_cpu_seconds=1000.0)
    open_now = [standing(number, "asked") for number in range(3)]
    assert refresh.is_awaited(open_now, {0})
    assert not refresh.is_awaited(open_now, {2}), "a trial of the whole study"
    assert not paid.is_awaited(open_now, {0}), "both are trained in any case"
    assert paid.is_awaited(open_now, {0, 1})
    both = run(log, *several, name="run-3", refresh_by=paid, **said)
    assert [trial.params["training.epochs"] for trial in both.trials] == [3, 9]
    higher = replace(refresh, enough=2.0)
    whole = run(log, *several, name="run-4", refresh_by=higher, **said)
    assert (len(whole.trials), whole.stopped_by) == (12, "trials")


def test_a_study_that_came_to_no_point_of_its_own_is_no_whole_one(
    log: EventLog, tmp_path: Path
) -> None:
    """Its answer was not enough, and the trials or the time were used up by it."""
    run(log, Rising(tmp_path / "1"), trials=12, space=SPACE, start="backbone")
    higher = replace(asked_again(log, price=price_of), enough=2.0)
    found = run(
        log, Rising(tmp_path / "2"), name="run-1b", refresh_by=higher, trials=2, space=SPACE
    )
    assert (found.stopped_by, len(found.trials)) == ("trials", 2)
    assert asked_again(log).of == "run-1"
    asks = {"space": [str(d) for d in read_space(SPACE, KEYS)], "metric": "accuracy"}
    assert {hint["study"] for hint in hints(log, "run-2", asks, num_trials=24)} == {"run-1"}
    assert maybe(log, refused={"run-1b": True}) is None


def test_where_no_budget_pays_for_the_second_point_the_first_that_is_enough_ends_the_study(
    log: EventLog, tmp_path: Path
) -> None:
    run(log, Rising(tmp_path / "1"), trials=12, space=SPACE, start="backbone")
    refresh = replace(asked_again(log, price=price_of), most_cpu_seconds=1000.0)
    said: dict[str, Any] = {"trials": 12, "space": SPACE, "refresh_by": refresh}
    found = run(log, Rising(tmp_path / "2"), name="run-2", cpu_budget=timedelta(seconds=20), **said)
    assert [(t.params["training.epochs"], t.state) for t in found.trials] == [(3, "complete")]


def test_what_is_tried_again_is_said_as_it_is(log: EventLog, tmp_path: Path) -> None:
    said: dict[str, Any] = {"trials": 20, "space": LAYERED, "start": "backbone"}
    keys = [*KEYS, "training.trainable_layers"]
    run(log, runner(tmp_path / "1"), keys=keys, **said)
    refresh = asked_again(log, space=LAYERED, beside=PROGRESSIVE)
    assert refresh.points[0] == refresh.points[1]
    stable = asked_again(log, space=LAYERED, stable=True)
    assert stable.points[0] != stable.points[1]
    assert "first" not in said_of(to_json(refresh))
    assert "tried again from stable, first by the fewest layers, 0." in said_of(to_json(stable))
