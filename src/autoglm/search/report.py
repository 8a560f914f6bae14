"""A study as one document, read from its journal: what `search show` prints and draws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.trial import Trial
from autoglm.errors import StorageError
from autoglm.evaluation.roles import Role
from autoglm.search import journal
from autoglm.search.bounds import unmet
from autoglm.search.folds import interval_of
from autoglm.search.opening import FAILED
from autoglm.search.results import Objective, pareto, pick, trials_of
from autoglm.search.space import point_of
from autoglm.search.standing import KEEPS, WHY, Standing, attrs_of, curve_of, standing_of
from autoglm.search.warm_start import MOST_OPENED
from autoglm.state.event_log import EventLog

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

# The importance of parameters over fewer trials is a guess.
MIN_TRIALS = 8


def find_study(log: EventLog, name: str = "") -> str:
    """The study `name`, or the newest that has not failed before any trial was complete.

    Raises: StorageError search.no_study.
    """
    prefix = journal.stream_of("")
    names = [stream.removeprefix(prefix) for stream in log.streams(prefix)]
    if name in names:
        return name
    if not name and names:
        newest_first = reversed(names[-MOST_OPENED:])
        return next((each for each in newest_first if not _is_nothing(log, each)), names[-1])
    known = ", ".join(names[-5:]) or "none"
    raise StorageError(
        f"there is no study {name}; there are {known}." if name else "there is no study yet.",
        code="search.no_study",
        next_step="Run `autoglm search run`, or `autoglm run`.",
        exit_code=2,
    )


def report_of(log: EventLog, name: str, *, project: str) -> dict[str, Any]:
    """Also of a study that is being run now: `stopped_by` is empty then.

    Raises: StorageError search.no_study.
    """
    from autoglm.search.warm_start import open_study

    study = open_study(log, find_study(log, name))
    asks = {} if study is None else study.user_attrs.get("asks", {})
    if study is None or not asks:
        raise find_nothing(name)
    metric, sign = str(asks["metric"]), -1 if asks.get("lower_is_better") else 1
    frozen = study.get_trials(deepcopy=False)
    over = trials_of(frozen, project=project, study=study.study_name, metric=metric)
    complete = [trial for trial in over if trial.state == "complete"]
    kept = {trial.number for trial in frozen if attrs_of(trial).get(KEEPS, True)}
    sound = [trial for trial in complete if trial.number in kept] or complete
    best = pick(sound, sign) if sound else None
    bounds = [from_json(Role, each) for each in study.user_attrs.get("bounds", [])]
    rows = _rows(frozen, metric, sign)
    return {
        "project": project,
        "study": study.study_name,
        "metric": metric,
        "direction": "maximize" if sign > 0 else "minimize",
        "space": asks.get("space", []),
        "removed": study.user_attrs.get("removed", []),
        "constraints": {bound.name: bound.bound for bound in bounds},
        "unmet": [to_json(each) for each in unmet(bounds, complete)],
        "refresh": dict(study.user_attrs.get("refresh", {})),
        "stopped_by": study.user_attrs.get("stopped_by", ""),
        "failed": study.user_attrs.get(FAILED, ""),
        "states": _counts(rows),
        "seconds": sum(row["seconds"] for row in rows),
        "cpu_seconds": sum(row["cpu_seconds"] for row in rows),
        "best": best and _best(best),
        "best_so_far": _best_so_far(rows, sign),
        "objectives": asks.get("objectives", []),
        "pareto": _pareto(study, complete, asks),
        "importance": _importance(study, metric, sign),
        "axes": _axes(frozen),
        "saved": _saved(frozen),
        "hints": list(study.user_attrs.get("hints", [])),
        "trials": rows,
    }


def is_open(log: EventLog) -> bool:
    """Whether the newest study is to go on: it has neither ended nor failed."""
    from autoglm.search.warm_start import open_study

    names = log.streams(journal.stream_of(""))
    if not names:
        return False
    study = open_study(log, names[-1].removeprefix(journal.stream_of("")))
    said = {} if study is None else study.user_attrs
    return bool(said) and not said.get("stopped_by") and not said.get(FAILED)


def _is_nothing(log: EventLog, name: str) -> bool:
    from optuna.trial import TrialState

    from autoglm.search.warm_start import open_study

    study = open_study(log, name)
    if study is None or not study.user_attrs.get(FAILED):
        return study is None
    return not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def find_nothing(name: str) -> StorageError:
    return StorageError(
        f"study {name} holds nothing yet.", code="search.no_study", next_step="Wait for it."
    )


def _rows(trials: Sequence[FrozenTrial], metric: str, sign: int) -> list[dict[str, Any]]:
    found = []
    for trial in trials:
        standing = standing_of(trial, sign)
        if standing is not None:
            found.append(_row(trial, standing, metric, sign))
    return found


def _row(trial: FrozenTrial, standing: Standing, metric: str, sign: int) -> dict[str, Any]:
    attrs = attrs_of(trial)
    value = None if standing.score is None else sign * standing.score
    return {
        "number": trial.number,
        "state": standing.state,
        "value": attrs.get("metrics", {}).get(metric, value),
        "params": dict(standing.params),
        "metrics": dict(attrs.get("metrics", {})),
        "curve": {str(stage): value for stage, value in curve_of(trial).items()},
        "seconds": standing.seconds,
        "cpu_seconds": standing.cpu_seconds,
        "expected_cpu_seconds": standing.cost,
        "why": list(attrs.get(WHY, ())),
        "saved": dict(attrs.get("saved", {})),
        "peak": dict(attrs.get("peak", {})),
        "folds": list(attrs.get("folds", ())),
        "interval": interval_of(metric, attrs.get("folds", ())),
        "at": attrs.get("at"),
        "branch_of": attrs.get("branch_of"),
        "cause": attrs.get("cause", ""),
    }


def _best(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "value": trial.value,
        "params": dict(trial.params),
        "folds": list(trial.folds),
        "interval": list(trial.interval),
    }


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    states = [str(row["state"]) for row in rows]
    return {state: states.count(state) for state in dict.fromkeys(states)}


def _best_so_far(rows: Sequence[Mapping[str, Any]], sign: int) -> list[dict[str, Any]]:
    """The moments at which the best value rose; seconds are of training, pauses left out."""
    sound = [row for row in rows if row["state"] != "failed"]
    measured = [row for row in sound if row["value"] is not None and row["at"]]
    found: list[dict[str, Any]] = []
    for row in sorted(measured, key=_moment):
        if not found or sign * row["value"] > sign * found[-1]["value"]:
            found.append({"number": row["number"], "value": row["value"], **row["at"]})
    return found


def _moment(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["at"]["seconds"], row["at"]["cpu_seconds"]


def _pareto(
    study: optuna.Study, complete: Sequence[Any], asks: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The trials that no other one beats, with their value in each objective."""
    sought = [
        Objective(name=name, maximize=direction.name == "MAXIMIZE")
        for name, direction in zip(asks.get("objectives", []), study.directions, strict=False)
    ]
    numbers = pareto(complete, sought)
    return [
        {
            "number": trial.number,
            "params": dict(trial.params),
            "values": {each.name: trial.metrics[each.name] for each in sought},
        }
        for trial in complete
        if trial.number in numbers
    ]


def _importance(study: optuna.Study, metric: str, sign: int) -> dict[str, float]:
    """Share of each parameter in how good a trial was; empty for fewer than 8 complete trials.

    Source: Watanabe et al., "PED-ANOVA", 2023, arXiv:2304.10255, as Optuna has it.
    """
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < MIN_TRIALS:
        return {}

    def lower_is_better(trial: FrozenTrial) -> float:
        value = attrs_of(trial).get("metrics", {}).get(metric)
        return -sign * float(trial.values[0] if value is None else value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is said here which way is better
        try:
            found = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                target=lower_is_better,
            )
        except (ValueError, RuntimeError):  # all values are equal, say
            return {}
    return {key: float(share) for key, share in found.items() if math.isfinite(share)}


def _axes(trials: Sequence[FrozenTrial]) -> dict[str, dict[str, Any]]:
    """Parameter → how it is drawn: its choices, or bounds and whether they are logarithmic."""
    found: dict[str, dict[str, Any]] = {}
    for trial in trials:
        for key, distribution in trial.distributions.items():
            if hasattr(distribution, "choices"):
                found[key] = {"choices": [point_of(told) for told in distribution.choices]}
            else:
                low, high = float(distribution.low), float(distribution.high)
                found[key] = {"low": low, "high": high, "is_log": bool(distribution.log)}
    return found


def _saved(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Lever → CPU-seconds that it saved in all trials."""
    total: dict[str, float] = {}
    if stopped := sum(map(_never_made, trials)):
        total["early_stop"] = stopped
    for trial in trials:
        for lever, seconds in attrs_of(trial).get("saved", {}).items():
            total[lever] = total.get(lever, 0.0) + float(seconds)
    return total


def _never_made(trial: FrozenTrial) -> float:
    """CPU-seconds of the stages that a trial which is over has left out, at the pace of those that
    were trained. An estimate: nobody trained them.
    """
    each = standing_of(trial, 1)
    if each is None or each.state not in {"stopped", "complete"} or not each.reached:
        return 0.0
    made = each.cpu_seconds + each.saved.get("stage_tree", 0.0)
    return made / each.reached * max(0, each.num_stages - each.reached)
