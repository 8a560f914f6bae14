from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from autoglm.clock import SteeredClock
from autoglm.contracts.record import digest
from autoglm.contracts.stage_chain import Cost, Progress, Stage, StageChain
from autoglm.errors import CancelledError, SearchError, TrainingError
from autoglm.loop.run_to_candidate import searchable_keys
from autoglm.search.config import SearchConfig
from autoglm.search.constraints import read_constraints
from autoglm.search.space import num_points, read_space
from autoglm.search.study import Study
from autoglm.search.warm_start import told_params
from autoglm.state.engine import open_state
from autoglm.state.event_log import EventLog

KEYS = ["training.lr", "training.epochs", "model.pooling"]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "empty"),
        ({"lrr": {"uniform": [0, 1]}}, "Did you mean lr"),
        ({"lr": {"unifrom": [0, 1]}}, "Did you mean uniform"),
        ({"lr": {"uniform": [1, 0]}}, "above"),
        ({"lr": {"loguniform": [0, 1]}}, "above 0"),
        ({"lr": 3}, "no dimension"),
        ({"lr": {"choice": []}}, "at least one"),
        ({"lr": {"choice": [1]}, "training.lr": {"choice": [2]}}, "twice"),
    ],
)  # fmt: skip
def test_a_wrong_space_is_refused_with_the_nearest_name(space: dict[str, Any], words: str) -> None:
    with pytest.raises(SearchError, match=words) as caught:
        read_space(space, KEYS)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("backbone", "section"),
    [("conv", "model.conv"), ("recurrent", "model.recurrent"), ("a/folder", "model.structure")],
)
def test_a_short_name_is_of_the_section_that_the_backbone_reads(
    backbone: str, section: str
) -> None:
    keys = searchable_keys(backbone)
    for name in ("num_layers", f"{section.removeprefix('model.')}.num_layers"):
        (found,) = read_space({name: {"choice": [1]}}, keys)
        assert (found.key, found.choices) == (f"{section}.num_layers", (1,))
    others = {"model.conv", "model.recurrent", "model.structure"} - {section}
    assert not [key for key in keys if key.rpartition(".")[0] in others]


def test_a_finite_space_knows_its_size() -> None:
    assert (
        num_points(
            read_space(
                {"epochs": {"randint": [1, 4]}, "pooling": {"choice": ["mean", "cls"]}}, KEYS
            )
        )
        == 6
    )
    assert num_points(read_space({"lr": {"uniform": [0, 1]}}, KEYS)) is None


class Curve:
    """A runner that computes instead of training: the seam is the port, not the trainer."""

    def __init__(self, clock: SteeredClock, *, die_at: int = -1, fail: bool = False) -> None:
        self.clock, self.die_at, self.fail = clock, die_at, fail
        self.advanced: list[str] = []

    def plan(self, params: Mapping[str, Any]) -> StageChain:
        stage = Stage(
            key=digest(params), parent="", settings=params, num_steps=3, seed=0, data_order=""
        )
        return StageChain(project="p", params=params, stages=(stage,))

    def cost(self, chain: StageChain) -> Cost:
        return Cost(cpu_seconds=1, disk_bytes=1, num_steps=3, whole=1)

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        if self.fail:
            raise TrainingError("the loss is not finite.", code="training.diverged")
        if len(self.advanced) == self.die_at:
            raise KeyboardInterrupt
        for _ in range(10):
            if cancel.is_set():
                raise CancelledError("stopped")
            self.clock.advance(1)
        self.advanced.append(chain.key)
        value = 1 - abs(chain.params["training.lr"] - 0.3)
        return Progress(
            key=chain.key,
            step=to_step,
            num_steps=to_step,
            metrics={"accuracy": value},
            cpu_seconds=1,
            reused_steps=0,
            folder="",
        )


def study(log: EventLog, runner: Curve, **config: Any) -> Study:
    defaults = config.pop("defaults", {})
    metric = config.pop("metric", "accuracy")
    space = config.setdefault("space", {"lr": {"uniform": [0.0, 1.0]}})
    return Study(
        project="p", name="run-1", config=SearchConfig(**config),
        dimensions=read_space(space, KEYS), defaults=defaults,
        constraints=read_constraints(config.get("constraints", ()), KEYS),
        metric=metric, seed=1,
        runners=[runner], log=log, clock=runner.clock, on_event=lambda _event: None,
    )  # fmt: skip


def test_the_best_trial_is_picked_and_a_resumed_study_repeats_no_told_trial(log: EventLog) -> None:
    first = Curve(SteeredClock(), die_at=3)
    with pytest.raises(KeyboardInterrupt):
        study(log, first, trials=8).run(threading.Event())
    second = Curve(SteeredClock())
    result = study(log, second, trials=8).run(threading.Event())
    assert len(result.trials) == 8
    assert len(second.advanced) == 5
    assert not set(first.advanced) & set(second.advanced)
    assert result.best.value == max(t.value or 0 for t in result.trials)


def test_the_budget_cuts_off_a_running_trial(log: EventLog) -> None:
    runner = Curve(SteeredClock())
    result = study(log, runner, trials=50, budget=timedelta(seconds=35)).run(threading.Event())
    assert result.stopped_by == "budget"
    assert len(result.trials) == 3
    assert runner.clock.monotonic() == 35


def test_a_first_trial_longer_than_the_budget_is_waited_for(log: EventLog) -> None:
    result = study(log, Curve(SteeredClock()), trials=50, budget=timedelta(seconds=5)).run(
        threading.Event()
    )
    assert result.stopped_by == "budget"
    assert len(result.trials) == 1


def test_a_cancelled_study_says_so_whatever_its_budget(log: EventLog) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        study(log, Curve(SteeredClock()), trials=5).run(cancel)


def test_the_projects_own_values_are_the_first_trial_if_the_space_holds_them(
    log: EventLog, tmp_path: Path
) -> None:
    defaults = {"training.lr": 0.25, "training.epochs": 3}
    result = study(log, Curve(SteeredClock()), trials=3, defaults=defaults).run(threading.Event())
    assert result.trials[0].params == {"training.lr": 0.25}
    other = EventLog(open_state(tmp_path / "other.db"))
    defaults = {"training.lr": 2.0}
    outside = study(other, Curve(SteeredClock()), trials=1, defaults=defaults).run(
        threading.Event()
    )
    assert 0 <= outside.trials[0].params["training.lr"] <= 1


def test_all_trials_failed_shows_the_first_cause(log: EventLog) -> None:
    with pytest.raises(SearchError, match="not finite"):
        study(log, Curve(SteeredClock(), fail=True), trials=9).run(threading.Event())


def test_a_metric_that_no_trial_has_is_said_with_those_that_they_have(log: EventLog) -> None:
    other = study(log, Curve(SteeredClock()), trials=1, metric="entity_f1")
    with pytest.raises(SearchError, match=r"no entity_f1.* Set evaluate\.metric .*: accuracy"):
        other.run(threading.Event())


def test_a_study_of_another_space_under_the_same_name_is_refused(log: EventLog) -> None:
    study(log, Curve(SteeredClock()), trials=1).run(threading.Event())
    other = study(log, Curve(SteeredClock()), trials=1, metric="macro_f1")
    with pytest.raises(SearchError, match="another metric.*accuracy.*macro_f1") as caught:
        other.run(threading.Event())
    assert caught.value.code == "search.other_space"
    wider = study(log, Curve(SteeredClock()), trials=1, space={"lr": {"uniform": [0.0, 2.0]}})
    with pytest.raises(SearchError, match=r"another space: it holds.*0 … 1.*asked for.*0 … 2"):
        wider.run(threading.Event())


def test_refused_points_are_not_trained_and_do_not_count(log: EventLog) -> None:
    runner = Curve(SteeredClock())
    result = study(log, runner, trials=6, constraints=("lr <= 0.4",)).run(threading.Event())
    assert len(result.trials) == len(runner.advanced) == 6
    assert all(trial.params["training.lr"] <= 0.4 for trial in result.trials)


def test_a_study_whose_constraint_nothing_fulfils_trains_nothing(log: EventLog) -> None:
    runner = Curve(SteeredClock())
    with pytest.raises(SearchError, match="'lr > 2'") as caught:
        study(log, runner, trials=6, constraints=("lr > 2",)).run(threading.Event())
    assert caught.value.code == "search.infeasible"
    assert runner.advanced == []


CONDITIONAL = {
    "lr": {"uniform": [0.0, 1.0]},
    "pooling": {"choice": ["mean", "cls"]},
    "epochs": {"choice": [1, 2, 3], "when": {"pooling": "cls"}},
}


def test_a_conditional_study_killed_while_it_asked_goes_on_where_it_was(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    class Killed(BaseException):
        pass

    suggest, asked = optuna.Trial.suggest_float, 0

    def killed(self: optuna.Trial, *arguments: Any, **named: Any) -> float:
        nonlocal asked
        asked += 1
        if asked == 8:  # six are asked at once; the seventh was told
            raise Killed
        return suggest(self, *arguments, **named)

    monkeypatch.setattr(optuna.Trial, "suggest_float", killed)
    first = Curve(SteeredClock())
    with pytest.raises(Killed):
        study(log, first, trials=12, space=CONDITIONAL).run(threading.Event())
    second = Curve(SteeredClock())
    result = study(log, second, trials=12, space=CONDITIONAL).run(threading.Event())
    assert [trial.number for trial in result.trials] == list(range(12))
    assert (len(first.advanced), len(second.advanced)) == (7, 5)
    for trial in result.trials:
        assert ("training.epochs" in trial.params) == (trial.params["model.pooling"] == "cls")


def test_a_finite_conditional_study_ends_when_every_point_was_tried(log: EventLog) -> None:
    runner = Curve(SteeredClock())
    space = {**CONDITIONAL, "lr": {"choice": [0.1, 0.3]}}
    result = study(log, runner, trials=50, space=space).run(threading.Event())
    assert len({digest(trial.params) for trial in result.trials}) == len(result.trials) == 8


def test_a_choice_that_is_no_scalar_comes_back_as_it_was_said(log: EventLog) -> None:
    space = {"lr": {"choice": [0.1]}, "pooling": {"choice": [{"name": "mean"}, ["cls"]]}}
    result = study(log, Curve(SteeredClock()), trials=9, space=space).run(threading.Event())
    found = [trial.params["model.pooling"] for trial in result.trials]
    assert sorted(map(str, found)) == ["['cls']", "{'name': 'mean'}"]
    assert told_params(log, "run-1") == {t.number: dict(t.params) for t in result.trials}
