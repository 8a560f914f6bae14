"""Points that earlier studies of the project found good: hints, since their rows were others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import optuna

from autoglm.search import journal
from autoglm.search.standing import COST, KEEPS, attrs_of, params_of, standing_of
from autoglm.state.event_log import EventLog

MOST_HINTS = 3
# One hint for so many trials: the others are the sampler's.
TRIALS_PER_HINT = 8
# Studies that hint, and how many are opened to find them.
MOST_STUDIES, MOST_OPENED = 5, 25


def hints(
    log: EventLog, name: str, asks: Mapping[str, Any], *, num_trials: int
) -> list[dict[str, Any]]:
    """The best points of earlier studies of the same space and metric, the newest study's first:
    `study`, `number`, `value`, `params`, `keeps` the constraints, and `told`, the point as Optuna
    takes it.
    """
    num = max(1, min(MOST_HINTS, num_trials // TRIALS_PER_HINT))
    asked = (best_points(log, each, asks) for each in newest_first(log, but=name)[:MOST_OPENED])
    ranked = [*islice(filter(None, asked), MOST_STUDIES)]
    found: list[dict[str, Any]] = []
    for place in range(num):  # every study's best before any study's second
        for points in ranked:
            if place < len(points) and all(points[place]["told"] != h["told"] for h in found):
                found.append(points[place])
    return found[:num]


def newest_first(log: EventLog, *, but: str) -> list[str]:
    """Names of the project's other studies."""
    prefix = journal.stream_of("")
    names = [stream.removeprefix(prefix) for stream in log.streams(prefix)]
    return [each for each in reversed(names) if each != but]


def best_points(log: EventLog, name: str, asks: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """The complete trials of the study `name`, its pick (`results.pick`) first: the best first, of
    equals the cheapest, those that keep the constraints of evaluate.metrics before the others; none
    when it asked something else than `asks`, or only tried an earlier study's answer again.
    """
    study = open_study(log, name)
    if study is None:
        return ()
    if tried_again(study):
        return ()  # what its values owe to stable is no matter of the point
    said = study.user_attrs.get("asks", {})
    if any(said.get(what) != asks[what] for what in ("space", "metric")):
        return ()
    sign = -1 if said.get("lower_is_better") else 1
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    metric = said["metric"]
    costs = {trial.number: float(attrs_of(trial).get(COST, 0.0)) for trial in complete}
    points = [
        {
            "study": name,
            "number": trial.number,
            "value": attrs_of(trial)["metrics"][metric],
            "params": params_of(trial),
            "keeps": bool(attrs_of(trial).get(KEEPS, True)),
            "told": dict(trial.params),
        }
        for trial in complete
        if metric in attrs_of(trial).get("metrics", {})
    ]
    return sorted(
        points,
        key=lambda p: (not p["keeps"], -sign * p["value"], costs[p["number"]], p["number"]),
    )


def open_study(log: EventLog, name: str) -> optuna.Study | None:
    """The study `name` for looking at; None when there is none."""
    try:
        return optuna.load_study(study_name=name, storage=journal.reading(log, name))
    except KeyError:
        return None


def tried_again(study: optuna.Study) -> str:
    """The earlier study whose answer is all that this one tried, with or without success; empty of
    one that came to a point of its own.
    """
    refresh = study.user_attrs.get("refresh")
    if refresh is None:
        return ""
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    has_own = any(trial.number >= len(refresh["points"]) for trial in complete)
    return "" if has_own else str(refresh["of"])


def told_params(log: EventLog, name: str) -> dict[int, dict[str, Any]]:
    """Trial number → parameters of the study `name`; empty when there is no such study."""
    study = open_study(log, name)
    trials = [] if study is None else study.get_trials(deepcopy=False)
    found = {trial.number: standing_of(trial, 1) for trial in trials}
    return {n: dict(each.params) for n, each in found.items() if each and each.params}
