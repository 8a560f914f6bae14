"""A sampler of the project's: what it raises is told by its name, and costs no told trial."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import optuna
import pytest

from autoglm.errors import PluginError
from autoglm.plugins import registry
from autoglm.search import samplers
from autoglm.search.opening import note_failure
from autoglm.search.report import find_study, report_of
from autoglm.state.event_log import EventLog
from search.numeric_runner import NumericRunner
from search.studies import run


@pytest.fixture(autouse=True)
def _own_parts() -> Iterator[None]:
    with registry.registering_from("tests"):
        yield


class Tired(optuna.samplers.RandomSampler):
    """Proposes so many points."""

    left = 3

    def sample_independent(self, *asked: Any) -> Any:
        if not Tired.left:
            raise ModuleNotFoundError("No module named 'rest'")
        Tired.left -= 1
        return super().sample_independent(*asked)


class Confused(optuna.samplers.RandomSampler):
    def sample_independent(self, *asked: Any) -> Any:
        super().sample_independent(*asked)
        return float("nan")


class Quarrelsome(optuna.samplers.RandomSampler):
    def after_trial(self, *_told: Any) -> None:
        raise RuntimeError("my own mistake")


class Evolved(optuna.samplers.CmaEsSampler):
    """Keeps what CMA-ES keeps, in its way."""

    def sample_independent(self, study: Any, trial: Any, *asked: Any) -> Any:
        study._storage.set_study_system_attr(study._study_id, "cma:optimizer:0", "80049")
        return super().sample_independent(study, trial, *asked)


class Deaf(optuna.samplers.RandomSampler):
    def after_trial(self, *_told: Any) -> None:
        raise KeyError("nobody listens")


def test_what_it_raises_when_it_is_made_asked_or_told_has_its_name(
    log: EventLog, runner: NumericRunner
) -> None:
    made = [lambda seed: 1 / 0, Deaf, Tired, Quarrelsome, lambda seed, study_seed: 1 / 0]
    for number, each in enumerate(made):
        registry.register("sampler", f"own-{number}", each)
        with pytest.raises(PluginError, match=f"sampler:own-{number} raised") as caught:
            run(log, runner, name=f"run-{number}", trials=5, sampler=f"own-{number}")
        assert caught.value.code == "plugin.sampler_raised"
    told = report_of(log, "run-2", project="p")["trials"]
    assert [row["state"] for row in told] == ["complete"] * 3
    Tired.left = 9
    found = run(log, runner, name="run-2", trials=5, sampler="own-2")
    assert [trial.params for trial in found.trials[:3]] == [row["params"] for row in told]
    assert len(found.trials) == 5


def test_one_that_tries_every_point_ends_as_ours_does(log: EventLog, runner: NumericRunner) -> None:
    registry.register("sampler", "own", lambda seed: samplers.grid(seed))
    found = run(log, runner, trials=9, sampler="own", space={"lr": {"choice": [0.1, 0.3, 0.5]}})
    assert (found.stopped_by, len(found.trials)) == ("space", 3)


def test_optunas_own_grid_ends_with_its_points(log: EventLog, runner: NumericRunner) -> None:
    grid = {"training.lr": [0.1, 0.3, 0.5, 0.7], "training.epochs": [1, 3]}
    space = {"lr": {"choice": grid["training.lr"]}, "epochs": {"choice": grid["training.epochs"]}}
    registry.register("sampler", "own", lambda seed: optuna.samplers.GridSampler(grid, seed))
    own = {"training.lr": 0.1, "training.epochs": 1}
    found = run(log, runner, trials=12, sampler="own", space=space, defaults=own)
    assert (found.stopped_by, len(found.trials)) == ("space", 8)


def test_what_is_no_point_is_refused_by_its_samplers_name(
    log: EventLog, runner: NumericRunner
) -> None:
    registry.register("sampler", "own", Confused)
    with pytest.raises(PluginError, match="sampler:own gave nan for training.lr") as caught:
        run(log, runner, trials=5, sampler="own")
    assert caught.value.code == "plugin.wrong_answer"


def test_a_pickle_is_kept_in_no_study_whoever_keeps_it(
    log: EventLog, runner: NumericRunner
) -> None:
    def wrapped(seed: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "experimental"
            return optuna.samplers.PartialFixedSampler({}, Evolved(seed=seed))

    for number, each in enumerate((Evolved, wrapped)):
        registry.register("sampler", f"cma-{number}", each)
        with pytest.raises(PluginError, match="which keeps pickles in the study") as caught:
            run(log, runner, name=f"run-{number}", trials=5, sampler=f"cma-{number}")
        assert caught.value.code == "plugin.wrong_answer"


def test_a_study_that_broke_off_says_why_and_is_no_newest_one_while_nothing_came_of_it(
    log: EventLog, runner: NumericRunner
) -> None:
    def broken_off(name: str) -> None:
        with pytest.raises(PluginError) as caught:
            run(log, runner, name=name, trials=5, sampler="gone", warm_start=False)
        note_failure(log, name, caught.value)

    note_failure(log, "run-0", PluginError("it was never stored."))
    run(log, runner, name="run-1", trials=3)
    registry.register("sampler", "gone", Tired)
    Tired.left = 0
    broken_off("run-2")
    assert find_study(log) == "run-1"
    report = report_of(log, "run-2", project="p")
    assert report["failed"].startswith("plugin.sampler_raised: sampler:gone raised")
    Tired.left = 2
    broken_off("run-3")
    assert find_study(log) == "run-3", "two trials are something"
    Tired.left = 9
    run(log, runner, name="run-3", trials=5, sampler="gone")
    report = report_of(log, "run-3", project="p")
    assert (report["failed"], report["stopped_by"]) == ("", "trials")
