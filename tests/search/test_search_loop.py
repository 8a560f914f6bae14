from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest

from autoglm.contracts.stage_chain import Progress, StageChain
from autoglm.contracts.trial import Trial
from autoglm.errors import (
    FencedError,
    ModelError,
    PluginError,
    SearchError,
    StorageError,
    TrainingError,
)
from autoglm.evaluation.roles import read_roles
from autoglm.plugins import registry
from autoglm.search import journal, samplers
from autoglm.search.constraints import read_constraints
from autoglm.search.report import report_of
from autoglm.search.results import Objective, pareto
from autoglm.search.space import read_space
from autoglm.search.stopping import expected_gain
from autoglm.search.warm_start import best_points
from autoglm.state.engine import open_state
from autoglm.state.event_log import EventLog
from search.numeric_runner import KEYS, STEPS, NumericRunner, value_of
from search.studies import LR, opened, run

FINITE = {"lr": {"choice": [0.1, 0.3, 0.5]}, "epochs": {"randint": [1, 3]}}


def epochs_of(trial: Trial) -> int:
    return trial.num_steps // STEPS


def test_asha_resumes_the_best_third_of_each_rung_and_trains_no_epoch_twice(
    log: EventLog, runner: NumericRunner
) -> None:
    result = run(log, runner, trials=27, scheduler="asha")
    reached = sorted((epochs_of(trial) for trial in result.trials), reverse=True)
    # Whoever was promoted too soon stays promoted; nobody is, beyond what the rungs allow.
    assert len(result.trials) == 27
    assert 3 <= reached.count(9) <= 6
    assert reached.count(1) >= 12
    assert {1, 3, 9} == set(reached)
    best = max(result.trials, key=lambda t: value_of(t.params, 9))
    assert result.best.number == best.number
    stored = (runner.folder / "stored.log").read_text().split()
    assert len(stored) == len(set(stored)) == sum(reached)


def test_a_trial_that_is_promoted_goes_on_at_its_rung(log: EventLog, runner: NumericRunner) -> None:
    run(log, runner, trials=9, scheduler="asha", reduction_factor=3)
    calls: dict[float, list[int]] = {}
    for lr, stage in runner.advanced:
        calls.setdefault(lr, []).append(stage)
    assert all(stages in ([1], [1, 3], [1, 3, 9]) for stages in calls.values())
    assert [1, 3, 9] in calls.values()


def test_hyperband_begins_some_trials_at_later_rungs(log: EventLog, runner: NumericRunner) -> None:
    result = run(log, runner, trials=27, scheduler="hyperband")
    first = [min(map(int, trial.curve)) for trial in result.trials]
    assert first.count(1) > first.count(3) >= first.count(9) >= 1


def test_the_median_stops_a_trial_that_is_below_it(log: EventLog, runner: NumericRunner) -> None:
    result = run(log, runner, trials=16, scheduler="median")
    stopped = [trial for trial in result.trials if trial.state == "stopped"]
    assert stopped
    assert all(len(trial.curve) < 9 for trial in stopped)
    best = max(result.trials, key=lambda t: value_of(t.params, 9))
    assert result.best.number == best.number


@pytest.mark.parametrize("scheduler", ["none", "median", "asha", "hyperband"])
def test_a_chain_of_one_stage_is_trained_whole_by_every_scheduler(
    log: EventLog, tmp_path: Path, scheduler: str
) -> None:
    runner = NumericRunner(tmp_path / "stages", epochs=1)
    result = run(log, runner, trials=8, scheduler=scheduler)
    assert [trial.state for trial in result.trials] == ["complete"] * 8
    assert len(runner.advanced) == 8


def test_the_pick_was_trained_to_its_end_though_no_rung_promotes_it(
    log: EventLog, runner: NumericRunner
) -> None:
    result = run(log, runner, trials=2, scheduler="asha")
    assert [trial.state for trial in result.trials].count("complete") >= 1
    assert epochs_of(result.best) == 9
    assert result.best.value == max(trial.value or 0 for trial in result.trials)


def test_training_that_ended_itself_is_not_judged_again(log: EventLog, tmp_path: Path) -> None:
    runner = NumericRunner(tmp_path / "stages", stops_at=1)
    result = run(log, runner, trials=3, scheduler="asha")
    assert [trial.state for trial in result.trials] == ["complete"] * 3
    assert [stage for _lr, stage in runner.advanced] == [1, 1, 1]


def test_a_trials_own_earlier_rungs_are_no_gift_and_what_others_trained_is(
    log: EventLog, runner: NumericRunner
) -> None:
    first = run(log, runner, trials=9, scheduler="asha")
    for trial in first.trials:
        assert trial.cpu_seconds == trial.num_steps  # each step was paid for once
        assert trial.saved == {"cache": float(len(trial.curve))}
    again = run(log, runner, name="run-2", trials=9, scheduler="asha", warm_start=False)
    assert again.cpu_seconds == 0
    assert [t.saved["stage_tree"] for t in again.trials] == [t.num_steps for t in again.trials]


def test_the_first_trials_run_cheapest_first(log: EventLog, runner: NumericRunner) -> None:
    space = {**LR, "dropout": {"uniform": [0.0, 0.5]}}
    result = run(log, runner, trials=8, space=space)
    dropouts = {
        trial.params["training.lr"]: trial.params["training.dropout"] for trial in result.trials
    }
    first = [dropouts[lr] for lr, _stage in runner.advanced[:6]]
    assert first == sorted(first)
    assert [trial.number for trial in result.trials] == list(range(8))


def test_a_study_ends_when_its_cpu_seconds_are_spent_and_a_resumed_one_knows_of_them(
    log: EventLog, tmp_path: Path
) -> None:
    runner = NumericRunner(tmp_path / "stages", epochs=1)
    budget = timedelta(seconds=4 * STEPS)
    result = run(log, runner, trials=50, cpu_budget=budget)
    assert (result.stopped_by, len(result.trials)) == ("cpu_budget", 4)
    assert result.cpu_seconds == 4 * STEPS

    class Killed(BaseException):
        pass

    def killed() -> None:
        if len(runner.advanced) == 7:
            raise Killed

    runner.step = killed
    with pytest.raises(Killed):
        run(
            log,
            runner,
            name="run-2",
            trials=50,
            cpu_budget=budget,
            space={"lr": {"uniform": [0, 2]}},
        )
    runner.step = lambda: None
    result = run(
        log, runner, name="run-2", trials=50, cpu_budget=budget, space={"lr": {"uniform": [0, 2]}}
    )
    assert (result.stopped_by, len(result.trials)) == ("cpu_budget", 4)
    assert len(runner.advanced) == 9  # four, two, the one that was killed, and two


def test_a_study_ends_when_more_trials_would_add_little(log: EventLog, tmp_path: Path) -> None:
    runner = NumericRunner(tmp_path / "stages", epochs=1)
    result = run(log, runner, trials=200, until_gain=0.002)
    assert result.stopped_by == "until_gain"
    assert 8 <= len(result.trials) < 60
    assert value_of({"training.lr": 0.3}, 1) - (result.best.value or 0) < 0.004


def test_the_expected_gain_is_what_the_last_doubling_added() -> None:
    assert expected_gain([1.0] * 7) == math.inf
    assert expected_gain([0.5] * 8) == 0
    # A value that only one of eight has is missed by half of all halves.
    assert expected_gain([1.0, *[0.0] * 7]) == pytest.approx(0.5)
    assert expected_gain([*[0.0] * 7, 1.0]) == pytest.approx(1.0)  # it came late: still learning
    assert expected_gain([-1.0] * 9) == 0


def test_a_study_whose_points_are_all_trained_says_so_and_trains_none_again(
    log: EventLog, runner: NumericRunner
) -> None:
    # Endless by its bounds; but the constraint leaves two points.
    space = {
        "lr": {"choice": [0.2, 0.3]},
        "epochs": {"choice": [1, 3]},
        "dropout": {"uniform": [0.0, 0.5], "when": {"epochs": 3}},
    }
    constraints = read_constraints(["epochs < 2"], KEYS)
    result = run(
        log, runner, trials=20, space=space, constraints=constraints, sampler="random",
        defaults={"training.epochs": 1, "training.dropout": 0.0},
    )  # fmt: skip
    assert (result.stopped_by, len(result.trials)) == ("space", 2)
    assert {trial.params["training.lr"] for trial in result.trials} == {0.2, 0.3}


def test_a_range_of_one_number_is_one_point(log: EventLog, runner: NumericRunner) -> None:
    (lr,) = read_space({"lr": optuna.distributions.FloatDistribution(0.1, 0.1)}, KEYS)
    assert lr.points() == (0.1,)
    space = {"lr": {"choice": [0.1]}, "dropout": optuna.distributions.FloatDistribution(0.2, 0.2)}
    result = run(log, runner, trials=20, space=space)
    assert (result.stopped_by, len(result.trials)) == ("space", 1)


def test_every_point_of_a_finite_space_ends_the_study(log: EventLog, runner: NumericRunner) -> None:
    result = run(log, runner, trials=50, space=FINITE)
    assert (result.stopped_by, len(result.trials)) == ("space", 6)


def test_a_study_that_has_ended_is_not_begun_again(log: EventLog, runner: NumericRunner) -> None:
    first = run(log, runner, trials=3)
    num = len(runner.advanced)
    assert run(log, runner, trials=3) == first
    assert len(runner.advanced) == num


OURS = ("tpe", "tpe_multivariate", "random", "gp", "qmc", "nsga2", "nsga3", "brute_force", "grid")


@pytest.fixture
def parts() -> Iterator[None]:
    """The samplers of this source tree, whatever the installed package lists."""
    with registry.registering_from("tests"):
        for name in OURS:
            registry.register("sampler", name, getattr(samplers, name), replace=True)
        yield
    with registry.registering_from("tests"):
        pass


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("name", OURS)
def test_every_sampler_that_has_a_name_searches_and_repeats_itself(
    tmp_path: Path, name: str
) -> None:
    space: dict[str, Any] = FINITE if name in {"brute_force", "grid"} else {
        "lr": {"uniform": [0.0, 1.0]}, "epochs": {"choice": [1, 2]},
        "optimizer": {"choice": ["adamw", "muon"]},
    }  # fmt: skip
    found = []
    for attempt in "ab":
        log = EventLog(open_state(tmp_path / f"{attempt}.db"))
        result = run(log, NumericRunner(tmp_path / attempt), trials=10, sampler=name, space=space)
        found.append([dict(trial.params) for trial in result.trials])
    assert len(found[0]) == (6 if space is FINITE else 10)
    assert found[0] == found[1]
    if space is not FINITE:
        assert len({params["training.lr"] for params in found[0]}) >= 8
        assert {params["training.optimizer"] for params in found[0]} == {"adamw", "muon"}


@pytest.mark.usefixtures("parts")
def test_a_sampler_that_tries_every_point_needs_an_end_of_them(
    log: EventLog, runner: NumericRunner
) -> None:
    with pytest.raises(SearchError, match="no end of them: training.lr") as caught:
        run(log, runner, sampler="grid")
    assert (caught.value.code, caught.value.exit_code) == ("search.endless", 2)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    "made",
    [
        optuna.samplers.RandomSampler,
        optuna.samplers.RandomSampler(seed=3),
        lambda seed: optuna.samplers.RandomSampler(seed),
    ],
    ids=["class", "object", "function"],
)
def test_a_projects_own_sampler_is_optunas_class_object_or_a_function(
    log: EventLog, runner: NumericRunner, made: Any
) -> None:
    with registry.registering_from("tests"):
        registry.register("sampler", "mine", made)
        result = run(log, runner, trials=5, sampler="mine")
    assert len({trial.params["training.lr"] for trial in result.trials}) == 5


def test_a_lower_value_is_better_where_the_metric_says_so(
    log: EventLog, runner: NumericRunner
) -> None:
    result = run(log, runner, trials=12, metric="loss", maximize=False, scheduler="asha")
    complete = [trial for trial in result.trials if trial.state == "complete"]
    assert result.best.value == min(trial.value or 1 for trial in complete)
    assert result.best.value == min(trial.value or 1 for trial in result.trials)


class TwoSided(NumericRunner):
    """Accuracy likes a rate of 0.3, `small` likes none."""

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        progress = super().advance(chain, to_step, cancel=cancel)
        metrics = {**progress.metrics, "size": chain.params["training.lr"]}
        return Progress(
            key=progress.key, step=progress.step, num_steps=progress.num_steps, metrics=metrics,
            cpu_seconds=progress.cpu_seconds, reused_steps=0, folder="",
        )  # fmt: skip


def test_several_objectives_give_the_points_that_nothing_beats_and_a_pick_by_the_metric(
    log: EventLog, tmp_path: Path
) -> None:
    sought = (Objective(name="accuracy", maximize=True), Objective(name="size", maximize=False))
    result = run(log, TwoSided(tmp_path / "stages"), trials=12, sought=sought)
    assert result.objectives == {"accuracy": "maximize", "size": "minimize"}
    by_number = {trial.number: trial for trial in result.trials}
    front = [by_number[number] for number in result.pareto]
    assert result.best.number in result.pareto
    assert min(result.trials, key=lambda t: t.metrics["size"]).number in result.pareto
    for trial in result.trials:
        beaten = any(
            other.metrics["accuracy"] >= trial.metrics["accuracy"]
            and other.metrics["size"] < trial.metrics["size"]
            for other in front
        )
        assert beaten != (trial.number in result.pareto)
    assert pareto(result.trials, ()) == ()


def test_several_objectives_are_scheduled_by_the_metric(log: EventLog, tmp_path: Path) -> None:
    sought = (Objective(name="accuracy", maximize=True), Objective(name="size", maximize=False))
    runner = TwoSided(tmp_path / "stages")
    result = run(log, runner, trials=12, sought=sought, scheduler="asha")
    states = [trial.state for trial in result.trials]
    assert states.count("stopped") > states.count("complete") > 0
    assert result.best.value == max(trial.value or 0 for trial in result.trials)


def test_a_trial_that_fails_at_a_later_rung_is_no_best(
    log: EventLog, runner: NumericRunner
) -> None:
    whole = runner.advance

    def diverging(chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        if abs(chain.params["training.lr"] - 0.3) < 0.1 and to_step > STEPS:
            raise TrainingError("the loss is not finite.", code="training.diverged")
        return whole(chain, to_step, cancel=cancel)

    runner.advance = diverging  # type: ignore[method-assign]
    result = run(log, runner, trials=16, scheduler="asha")
    failed = [trial for trial in result.trials if trial.state == "failed"]
    assert failed
    assert all(trial.value is None and "not finite" in trial.cause for trial in failed)
    assert result.best.state == "complete"


@pytest.mark.parametrize("call", ["plan", "advance"])
def test_a_trial_whose_model_cannot_be_opened_fails_and_the_others_go_on(
    log: EventLog, runner: NumericRunner, call: str
) -> None:
    whole = getattr(runner, call)

    def refusing(of: Any, *more: Any, **named: Any) -> Any:
        if getattr(of, "params", of)["training.lr"] > 0.8:
            raise ModelError("head:own cannot be carried.", code="model.not_carried")
        return whole(of, *more, **named)

    setattr(runner, call, refusing)
    result = run(log, runner, trials=8)
    states = {trial.state for trial in result.trials}
    assert states == {"complete", "failed"}
    assert result.best.state == "complete"


def test_the_best_that_keeps_the_constraints_is_trained_to_its_end_shown_and_picked(
    log: EventLog, tmp_path: Path
) -> None:
    bounds = read_roles({"size": {"at_most": 0.2}})
    runner = TwoSided(tmp_path / "stages")
    result = run(log, runner, trials=12, scheduler="asha", bounds=bounds)
    kept = [trial for trial in result.trials if trial.metrics["size"] <= 0.2]
    assert kept
    assert result.best.value == max(trial.value or 0 for trial in kept)
    assert result.best.value < max(trial.value or 0 for trial in result.trials)
    assert epochs_of(result.best) == 9
    report = report_of(log, "run-1", project="p")
    assert report["best"]["number"] == result.best.number
    assert (report["constraints"], report["unmet"]) == ({"size": "at most 0.2"}, [])


def test_what_an_earlier_study_gives_first_kept_its_constraints(
    log: EventLog, tmp_path: Path
) -> None:
    bounds = read_roles({"size": {"at_most": 0.2}})
    found = run(log, TwoSided(tmp_path / "stages"), trials=8, bounds=bounds)
    points = best_points(
        log, "run-1", {"space": [str(*read_space(LR, KEYS))], "metric": "accuracy"}
    )
    assert points[0]["number"] == found.best.number
    assert points[0]["value"] < max(point["value"] for point in points)


def test_a_new_study_tries_the_best_points_of_earlier_ones_first(
    log: EventLog, runner: NumericRunner
) -> None:
    first = run(log, runner, name="run-1", trials=24)
    second = run(log, runner, name="run-2", trials=24)
    ranked = sorted(first.trials, key=lambda t: -(t.value or 0))[:3]
    tried = [dict(trial.params) for trial in second.trials[:3]]
    assert tried == [dict(trial.params) for trial in ranked]
    assert [hint["number"] for hint in second.hints] == [trial.number for trial in ranked]
    other = run(log, runner, name="run-3", trials=2, space={"lr": {"uniform": [0.0, 2.0]}})
    cold = run(log, runner, name="run-4", trials=2, warm_start=False)
    assert other.hints == cold.hints == ()
    for number in range(5):  # they take no places of those that asked the same
        space = {"lr": {"uniform": [0.0, 3.0 + number]}}
        run(log, runner, name=f"run-of-{number}", trials=1, space=space)
    hinted = run(log, runner, name="run-5", trials=24).hints
    # What was best in run-1 was tried again, and best, in run-2.
    assert {hint["study"] for hint in hinted} == {"run-2", "run-4"}


def test_a_writer_whose_study_was_taken_over_is_refused(
    log: EventLog, runner: NumericRunner
) -> None:
    def taken_over() -> None:
        if len(runner.advanced) == 3:
            log.take(journal.stream_of("run-1"))

    runner.step = taken_over
    with pytest.raises(FencedError, match="taken over"):
        run(log, runner, trials=8)
    runner.step = lambda: None
    assert len(run(log, runner, trials=8).trials) == 8


def test_optuna_itself_opens_the_study_and_may_not_write_to_it(
    log: EventLog, runner: NumericRunner, tmp_path: Path
) -> None:
    result = run(log, runner, trials=9, scheduler="asha")
    looking = EventLog(open_state(tmp_path / "state.db", read_only=True))
    storage = journal.reading(looking, "run-1")
    study = optuna.load_study(study_name="run-1", storage=storage)
    assert study.best_trial.number == result.best.number
    assert [s.study_name for s in optuna.get_all_study_summaries(storage)] == ["run-1"]
    states = {trial.number: trial.state.name for trial in study.trials}
    assert set(states.values()) == {"COMPLETE", "PRUNED"}
    curves = {t.number: dict(t.intermediate_values) for t in study.trials}
    assert curves == {
        t.number: {int(stage): v for stage, v in t.curve.items()} for t in result.trials
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importance = optuna.importance.get_param_importances(study)
    assert set(importance) == {"training.lr"}
    with pytest.raises(StorageError, match="for reading only"):
        study.set_user_attr("note", "mine")


def test_a_metric_that_is_missing_among_the_objectives_fails_the_trial_by_its_name(
    log: EventLog, runner: NumericRunner
) -> None:
    sought = (Objective(name="recall", maximize=True),)
    with pytest.raises(SearchError, match="no recall"):
        run(log, runner, trials=4, sought=sought)


def test_a_study_without_a_complete_trial_is_tried_again(
    log: EventLog, runner: NumericRunner
) -> None:
    def broken(params: Mapping[str, Any]) -> StageChain:
        raise SearchError("it does not fit.")

    whole, runner.plan = runner.plan, broken  # type: ignore[method-assign]
    with pytest.raises(SearchError, match="it does not fit"):
        run(log, runner, trials=9)
    runner.plan = whole  # type: ignore[method-assign]
    result = run(log, runner, trials=9)
    assert [trial.state for trial in result.trials].count("complete") == 9


def test_a_trial_that_was_half_asked_is_asked_the_rest_and_counts_once(
    log: EventLog, runner: NumericRunner
) -> None:
    """As versions left it that wrote down value by value."""
    space = {**LR, "dropout": {"uniform": [0.0, 0.5]}}
    first = opened(log, runner, trials=4, space=space)
    first._open()
    trial = first._study.ask()
    value = trial.suggest_float("training.dropout", 0.0, 0.5)
    result = run(log, runner, trials=4, space=space)
    assert [trial.number for trial in result.trials] == [0, 1, 2, 3]
    assert result.trials[0].params["training.dropout"] == value
    assert "training.lr" in result.trials[0].params


def test_what_a_projects_sampler_gives_must_be_one(log: EventLog, runner: NumericRunner) -> None:
    with registry.registering_from("tests"):
        registry.register("sampler", "mine", lambda seed: "random")
        with pytest.raises(PluginError, match="gave str"):
            run(log, runner, trials=5, sampler="mine")


def test_a_study_of_other_objectives_under_the_same_name_is_refused(
    log: EventLog, runner: NumericRunner
) -> None:
    run(log, runner, trials=2)
    sought = (Objective(name="loss", maximize=False),)
    with pytest.raises(SearchError, match="another objectives") as caught:
        run(log, runner, trials=2, sought=sought)
    assert (caught.value.code, caught.value.exit_code) == ("search.other_space", 2)


def test_a_full_disk_is_no_fault_of_a_trial(log: EventLog, runner: NumericRunner) -> None:
    def full() -> None:
        raise TrainingError("SafetensorError: No space left on device", code="training.broken")

    runner.step = full
    with pytest.raises(StorageError) as caught:
        run(log, runner, trials=8)
    assert caught.value.code == "storage.full"
    runner.step = lambda: None
    states = [trial.state for trial in run(log, runner, trials=8).trials]
    assert states == ["complete"] * 8
