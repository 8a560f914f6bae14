"""A study of nearly the rows of an earlier one begins with what that one answered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoglm.contracts.record import to_json
from autoglm.evaluation.resampling import standard_error
from autoglm.search.refresh import FREEZING, REHEARSAL, Refresh, refresh_of, said_of
from autoglm.search.report import report_of
from autoglm.search.space import read_space
from autoglm.search.warm_start import hints
from autoglm.state.event_log import EventLog
from search.numeric_runner import KEYS, NumericRunner
from search.refreshes import (
    LAYERED,
    PROGRESSIVE,
    QUARTER,
    SPACE,
    Given,
    Level,
    Unlike,
    asked_again,
    maybe,
    runner,
)
from search.studies import run


def test_an_answer_that_holds_is_the_whole_study(log: EventLog, tmp_path: Path) -> None:
    first = run(log, runner(tmp_path / "1"), trials=12, space=SPACE)
    refresh = asked_again(log)
    found = run(
        log, runner(tmp_path / "2"), name="run-2", trials=12, space=SPACE, refresh_by=refresh
    )
    assert (found.stopped_by, len(found.trials)) == ("refresh", 1)
    assert found.best.params == first.best.params
    assert found.best.value == first.best.value
    assert (found.refresh["of"], found.refresh["changed"]) == ("run-1", 0.01)
    assert said_of(report_of(log, "run-2", project="p")["refresh"]).startswith("1.0 % of the rows")


def test_of_equal_points_the_one_that_the_study_picked_is_tried_again(
    log: EventLog, tmp_path: Path
) -> None:
    picked = run(log, Level(tmp_path / "1"), trials=8, space=SPACE).best
    assert picked.number > 0
    (point,) = asked_again(log).points
    assert point == picked.params
    assert point["training.epochs"] == 1


def test_an_answer_that_no_longer_holds_is_followed_by_a_whole_study(
    log: EventLog, tmp_path: Path
) -> None:
    run(log, runner(tmp_path / "1"), trials=8, space=SPACE)
    refresh = asked_again(log)
    too_much = Refresh(
        of=refresh.of, changed=refresh.changed, start=refresh.start, value=refresh.value,
        enough=2.0, most_cpu_seconds=refresh.most_cpu_seconds, points=refresh.points,
    )  # fmt: skip
    found = run(
        log, runner(tmp_path / "2"), name="run-2", trials=8, space=SPACE, refresh_by=too_much
    )
    assert (found.stopped_by, len(found.trials)) == ("trials", 8)


def test_from_stable_the_fewest_layers_and_epochs_come_first(log: EventLog, tmp_path: Path) -> None:
    keys = [*KEYS, "training.trainable_layers"]
    first = run(log, runner(tmp_path / "1"), trials=20, space=LAYERED, keys=keys)
    refresh = asked_again(log, stable=True, space=LAYERED)
    assert refresh.start == "stable"
    assert first.best.params["training.epochs"] > 1, "else there is nothing to leave out"
    assert first.best.params["training.trainable_layers"] > 0, "as above"
    least, more = refresh.points
    assert (least["training.trainable_layers"], least["training.epochs"]) == (0, 1)
    assert more["training.trainable_layers"] == first.best.params["training.trainable_layers"]
    assert more["training.epochs"] == 1
    assert {point["training.lr"] for point in refresh.points} == {first.best.params["training.lr"]}


def test_from_stable_a_quarter_of_the_rows_comes_first_and_all_of_them_behind(
    log: EventLog, tmp_path: Path
) -> None:
    keys, space = [*KEYS, REHEARSAL], {"lr": SPACE["lr"]}
    first = run(log, runner(tmp_path / "1"), trials=4, space=space, keys=keys)
    refresh = asked_again(log, stable=True, space=space, beside=QUARTER)
    assert refresh.points == (first.best.params, first.best.params)
    higher = replace(refresh, enough=2.0)
    said: dict[str, Any] = {"trials": 6, "space": space, "keys": keys}
    found = run(log, runner(tmp_path / "2"), name="run-2", refresh_by=higher, **said)
    assert [trial.params.get(REHEARSAL) for trial in found.trials[:3]] == [0.25, None, None]
    assert "on what is new and a sample of the other rows" in said_of(to_json(refresh))
    same = asked_again(log, stable=True, space=space, beside=QUARTER, changed=0.0)
    assert (len(same.points), same.beside) == (1, ()), "of the very rows the answer itself is tried"


def test_where_stable_does_not_know_the_rows_the_answer_itself_is_tried(
    log: EventLog, tmp_path: Path
) -> None:
    keys = [*KEYS, "training.trainable_layers"]
    first = run(log, runner(tmp_path / "1"), trials=20, space=LAYERED, keys=keys)
    older = asked_again(log, stable=True, knows=False, space=LAYERED, beside=QUARTER)
    assert (older.start, older.points, older.beside) == ("stable", (first.best.params,), ())


def test_no_layers_or_epochs_are_left_out_on_which_another_dimension_counts(
    log: EventLog, tmp_path: Path
) -> None:
    keys = [*KEYS, "training.trainable_layers"]
    shallow = {"uniform": [0.0, 0.5], "when": {"trainable_layers": 0}}
    space = {**LAYERED, "dropout": shallow}
    first = run(log, runner(tmp_path / "1"), trials=20, space=space, keys=keys)
    assert first.best.params["training.trainable_layers"] > 0, "else there is nothing to leave out"
    refresh = asked_again(log, stable=True, space=space)
    assert len(refresh.points) == 1
    layers = first.best.params["training.trainable_layers"]
    assert refresh.points[0]["training.trainable_layers"] == layers
    assert refresh.points[0]["training.epochs"] == 1


def test_a_point_that_the_constraints_refuse_is_none_of_a_refresh(
    log: EventLog, tmp_path: Path
) -> None:
    keys = [*KEYS, "training.trainable_layers"]
    first = run(log, runner(tmp_path / "1"), trials=20, space=LAYERED, keys=keys)
    said: dict[str, Any] = {"stable": True, "space": LAYERED, "beside": QUARTER}
    kept = asked_again(log, allows=lambda p: p["training.trainable_layers"] > 0, **said)
    assert [point["training.trainable_layers"] > 0 for point in kept.points] == [True, True]
    assert {point["training.epochs"] for point in kept.points} == {1}
    assert kept.beside == (QUARTER, {})
    long = asked_again(log, allows=lambda p: p["training.epochs"] > 1, **said)
    assert long.points[0] == first.best.params, "the answer itself is left"
    assert maybe(log, allows=lambda _params: False, **said) is None


def test_a_point_beyond_the_first_is_trained_only_where_a_share_of_the_study_pays_for_it(
    log: EventLog, tmp_path: Path
) -> None:
    keys = [*KEYS, "training.trainable_layers"]
    run(log, runner(tmp_path / "1"), trials=20, space=LAYERED, keys=keys)
    refresh = asked_again(log, stable=True, space=LAYERED)
    for seconds, num in ((0.0, 1), (1000.0, 2)):
        bounded = Refresh(
            of=refresh.of, changed=0.01, start="stable", value=refresh.value, enough=0.0,
            most_cpu_seconds=seconds, points=refresh.points,
        )  # fmt: skip
        found = run(
            log, runner(tmp_path / str(num)), name=f"run-of-{num}", trials=20, space=LAYERED,
            keys=keys, refresh_by=bounded,
        )  # fmt: skip
        assert (found.stopped_by, len(found.trials)) == ("refresh", num)


def test_what_is_tried_again_is_trained_to_its_end_whatever_the_scheduler_pauses(
    log: EventLog, tmp_path: Path
) -> None:
    first = run(log, runner(tmp_path / "1"), trials=12, space=SPACE)
    found = run(
        log, runner(tmp_path / "2"), name="run-2", trials=12, space=SPACE, scheduler="asha",
        refresh_by=asked_again(log),
    )  # fmt: skip
    assert (found.stopped_by, found.best.state) == ("refresh", "complete")
    assert found.best.num_steps == first.best.num_steps


def test_a_study_that_goes_on_begins_with_what_it_found_when_it_was_made(
    log: EventLog, tmp_path: Path
) -> None:
    run(log, runner(tmp_path / "1"), trials=12, space=SPACE)
    refresh = asked_again(log)

    def die() -> None:
        raise KeyboardInterrupt

    broken = NumericRunner(tmp_path / "2", step=die)
    with pytest.raises(KeyboardInterrupt):
        run(log, broken, name="run-2", trials=12, space=SPACE, refresh_by=refresh)
    found = run(log, runner(tmp_path / "3"), name="run-2", trials=12, space=SPACE)
    assert (found.stopped_by, len(found.trials)) == ("refresh", 1)


def test_only_a_whole_study_of_this_space_and_metric_answers(log: EventLog, tmp_path: Path) -> None:
    assert maybe(log) is None
    run(log, runner(tmp_path / "1"), trials=6, space=SPACE)
    run(
        log, runner(tmp_path / "2"), name="run-1b", trials=6, space=SPACE,
        refresh_by=asked_again(log),
    )  # fmt: skip
    assert asked_again(log).of == "run-1", "changes are counted since the last whole study"
    assert maybe(log, space={"lr": {"uniform": [0.0, 0.5]}}) is None
    assert maybe(log, metric="macro_f1") is None
    assert maybe(log, changed=None) is None
    asks = {"space": [str(d) for d in read_space(SPACE, KEYS)], "metric": "accuracy"}
    assert {hint["study"] for hint in hints(log, "run-2", asks, num_trials=24)} == {"run-1"}


def test_enough_is_what_a_share_may_be_by_chance_and_the_margin_below_what_is_none(
    log: EventLog, tmp_path: Path
) -> None:
    run(log, runner(tmp_path / "1"), trials=6, space=SPACE)
    share = asked_again(log)
    error = standard_error(share.value, 220)
    assert error is not None
    assert share.enough == pytest.approx(share.value - 1.645 * error)
    run(log, Unlike(tmp_path / "2"), name="run-1b", trials=6, space=SPACE, metric="negative_mae")
    no_share = asked_again(log, metric="negative_mae")
    assert -1 < no_share.value < 0, "a share's number, but for the sign"
    assert no_share.enough == pytest.approx(no_share.value - 0.01)
    run(log, Unlike(tmp_path / "3"), name="run-1c", trials=6, space=SPACE, metric="r2")
    no_share = asked_again(log, metric="r2")
    assert 0 < no_share.value < 1
    assert no_share.enough == pytest.approx(no_share.value - 0.01)


def test_from_the_backbone_layers_stop_to_learn_first(log: EventLog, tmp_path: Path) -> None:
    """The point as it was comes behind, and is trained where the first is not enough."""
    first = run(log, runner(tmp_path / "1"), trials=12, space=SPACE)
    refresh = asked_again(log, beside=PROGRESSIVE)
    assert refresh.points == (first.best.params, first.best.params)
    assert refresh.beside == (PROGRESSIVE, {})
    said: dict[str, Any] = {"trials": 12, "space": SPACE}
    found = run(log, runner(tmp_path / "2"), name="run-2", refresh_by=refresh, **said)
    assert (found.stopped_by, len(found.trials)) == ("refresh", 1)
    assert found.best.params == {**first.best.params, FREEZING: "progressive"}
    assert asked_again(log, beside=PROGRESSIVE).of == "run-1", "what a refresh found gives no hints"

    higher = replace(refresh, enough=2.0)
    whole = run(log, runner(tmp_path / "3"), name="run-3", refresh_by=higher, **said)
    assert [FREEZING in trial.params for trial in whole.trials[:3]] == [True, False, False]
    assert whole.stopped_by != "refresh"


def test_what_won_beside_the_space_is_tried_again_with_what_it_had(
    log: EventLog, tmp_path: Path
) -> None:
    """Of a study that went on behind its refresh."""
    run(log, runner(tmp_path / "1"), trials=4, space=SPACE)
    higher = replace(asked_again(log, beside=PROGRESSIVE), enough=2.0)
    said: dict[str, Any] = {"trials": 4, "space": SPACE}
    run(log, runner(tmp_path / "2"), name="run-2", refresh_by=higher, **said)
    dimensions = read_space(SPACE, [*KEYS, FREEZING])
    given = Given(only="run-2", beside=PROGRESSIVE)
    again = refresh_of(
        log, "run-3", dimensions, given, metric="accuracy", num_rows=220, margin=0.01
    )
    assert again is not None
    assert again.beside == (PROGRESSIVE, {})


def test_a_point_beside_the_space_takes_the_place_of_none_in_it(
    log: EventLog, tmp_path: Path
) -> None:
    space = {"lr": {"choice": [0.1, 0.3, 0.5]}}
    run(log, runner(tmp_path / "1"), trials=9, space=space)
    higher = replace(asked_again(log, space=space, beside=PROGRESSIVE), enough=2.0)
    said: dict[str, Any] = {"trials": 9, "space": space}
    found = run(log, runner(tmp_path / "2"), name="run-2", refresh_by=higher, **said)
    assert found.stopped_by == "space"
    plain = [trial.params for trial in found.trials if FREEZING not in trial.params]
    assert sorted(params["training.lr"] for params in plain) == [0.1, 0.3, 0.5]
    assert len(found.trials) == 4


def test_what_answers_for_an_earlier_study_is_not_paid_from_a_budget_in_trainings(
    log: EventLog, tmp_path: Path
) -> None:
    """Enough or not, it is told from the study's own trials: one that is not enough is followed by
    a whole study, one that is enough is the answer, and no whole study for the next to look at.
    """
    said: dict[str, Any] = {"trials": 12, "space": SPACE, "full_trainings": 1.0}
    run(log, runner(tmp_path / "1"), **said)
    refresh = asked_again(log)
    enough = run(log, runner(tmp_path / "2"), name="run-2", refresh_by=refresh, **said)
    assert (len(enough.trials), enough.stopped_by) == (1, "refresh")
    higher = replace(refresh, enough=2.0)
    found = run(log, runner(tmp_path / "3"), name="run-3", refresh_by=higher, **said)
    assert len(found.trials) == 2
    assert found.stopped_by == "full_trainings"
