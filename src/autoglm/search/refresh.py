"""What a study begins with when nearly all of its rows were asked about before.

newest whole study of this space and metric, whose run had these settings and nearly these rows
answer  ← its best point; where training starts from the backbone, first its cheapest point that is
          as good but for a standard error or the margin, with layers that stop to learn; from
          stable, which was trained by it, first with the fewest layers and epochs that the space
          has and a share of the rows that stable knows, then with the fewest epochs
enough  ← its best value less what training it again may differ by
train the points, the cheapest first, to their ends
one is enough → the study ends; further points are trained while a twentieth of what the whole study
          took pays for them
none is       → the rows are others after all: the study goes on as a whole one
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autoglm.evaluation.metrics import SHARES
from autoglm.evaluation.resampling import standard_error
from autoglm.search.first_points import EPOCHS, LAYERS
from autoglm.search.space import Dimension
from autoglm.search.standing import BEGAN_AT, Standing, attrs_of
from autoglm.search.warm_start import (
    MOST_OPENED,
    best_points,
    newest_first,
    open_study,
    tried_again,
)
from autoglm.state.event_log import EventLog

FREEZING, REHEARSAL = BESIDE = "training.freezing", "training.rehearsal"
# Of what the whole study took, for points beyond the first.
MOST_SHARE = 0.05
# Standard errors by which a value may be lower, and the answer still holds. Nearly the same rows
# validate, so this is no test of chance among rows: it leaves room for what another training of
# the same point differs by, and for the luck of the best of several values.
STILL_HOLDS = 1.645


@dataclass(frozen=True, kw_only=True, slots=True)
class Refresh:
    """The answer of the study `of`, to be tried again. `changed`: share of the rows that are others
    now. `points` are as Optuna takes them, the first trials, and `beside` what each has by key that
    no dimension asks. `value` is what the answer was worth then; a trial with at least the score
    `enough` (higher is better) ends the study.
    """

    of: str
    changed: float
    start: str
    value: float
    enough: float
    most_cpu_seconds: float
    points: tuple[Mapping[str, Any], ...]
    beside: tuple[Mapping[str, Any], ...] = ()

    @property
    def num_outside(self) -> int:
        """Points that are none of the space's."""
        return sum(map(bool, self.beside))

    def has(self, each: Standing) -> bool:
        return each.number < len(self.points)

    def is_answered(self, standings: Sequence[Standing]) -> bool:
        """Whether a point is enough, and none is left that may still be paid for."""
        mine = [each for each in standings if self.has(each)]
        if not self._is_enough(mine):
            return False
        spent = sum(each.cpu_seconds for each in mine)
        left = [each.cost for each in mine if each.state == "asked"]
        return not left or spent + min(left) > self.most_cpu_seconds

    def _is_enough(self, mine: Sequence[Standing]) -> bool:
        scores = [each.score for each in mine if each.state == "complete" and each.keeps]
        return max((s for s in scores if s is not None), default=-math.inf) >= self.enough

    def is_open(self, standings: Sequence[Standing], at_work: Collection[int]) -> bool:
        """Whether nothing but its points is to be begun: one is being trained, or was enough."""
        mine = [each for each in standings if self.has(each)]
        return any(each.number in at_work for each in mine) or self._is_enough(mine)

    def is_awaited(self, standings: Sequence[Standing], at_work: Collection[int]) -> bool:
        """Whether a point that is being trained may be the answer, so that no idle worker begins
        anything beside it: not if a further point is paid for in any case.
        """
        mine = [each for each in standings if self.has(each)]
        if not any(each.number in at_work for each in mine):
            return False
        left = [each.cost for each in mine if each.state == "asked" and each.number not in at_work]
        spent = sum(each.cost for each in mine if each.number in at_work or each.is_over)
        return not left or spent + min(left) > self.most_cpu_seconds


class Circumstances(Protocol):
    """What whoever runs the study knows of earlier ones, of stable and of what trials cost."""

    @property
    def starts_from_stable(self) -> bool: ...

    def changed_since(self, study: str) -> float | None:
        """Share of the rows that are others now; None of a study with another question."""

    def stable_knows(self, study: str) -> bool:
        """Whether the version in service learnt what that study learnt from, or more."""

    def was_refused(self, study: str) -> bool | None:
        """Whether what the run of that study found was refused by a gate, or taken back for its
        errors under traffic; None where nobody judged it.
        """

    def allows(self, params: Mapping[str, Any]) -> bool:
        """Whether a trial's values keep the constraints."""

    def cost(self, params: Mapping[str, Any]) -> float:
        """CPU-seconds that a trial is expected to take; infinite where nobody can tell."""

    def cheaper(self, start: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """What beside a trial's values makes it cheaper from `stable` or `backbone`."""


def refresh_of(
    log: EventLog,
    name: str,
    dimensions: Sequence[Dimension],
    circumstances: Circumstances,
    *,
    metric: str,
    num_rows: int,
    margin: float,
) -> Refresh | None:
    """Of the newest whole study of this space and metric that the circumstances let answer; None
    without one, where none of its trials kept the constraints, or where it was tried again before
    and the newest candidate of that was refused. `metric` is one of which more is better,
    `num_rows` validate, and `margin` is what a candidate may fall short by.
    """
    asks = {"space": [str(dimension) for dimension in dimensions], "metric": metric}
    refused: dict[str, bool] = {}
    for earlier in newest_first(log, but=name)[:MOST_OPENED]:
        answers = _answers_of(log, earlier, asks)
        verdict = circumstances.was_refused(earlier) if answers.tried_again else None
        if verdict is not None:
            refused.setdefault(answers.tried_again, verdict)
        changed = circumstances.changed_since(earlier) if answers.points else None
        if changed is None:
            continue
        best = answers.points[0]
        if refused.get(earlier) or not best["keeps"]:
            return None
        value = float(best["value"])
        error = standard_error(value, num_rows) if metric in SHARES else None
        is_from_stable = circumstances.starts_from_stable
        # Of the very rows that were asked about the answer itself is tried.
        if is_from_stable and changed and circumstances.stable_knows(earlier):
            points, beside = _from_stable(dimensions, best, circumstances)
        else:
            first = best
            if not is_from_stable and changed and answers.began_at == "backbone":
                # Further below than the margin the candidate would be refused.
                least = value - min(margin, math.inf if error is None else error)
                first = _cheapest(answers.points, dimensions, circumstances, least=least)
            points, beside = _as_it_was(dimensions, first, best, circumstances)
        if not points:
            return None
        return Refresh(
            of=earlier,
            changed=changed,
            start="stable" if is_from_stable else "backbone",
            value=value,
            enough=value - (margin if error is None else STILL_HOLDS * error),
            most_cpu_seconds=MOST_SHARE * answers.cpu_seconds,
            points=tuple(points),
            beside=(beside, {}) if beside else (),
        )
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answers:
    """`points` of a study, its pick first, and the CPU-seconds that it took; or the study that it
    tried again, where it did no more than that. `began_at`: where its trials did (`opening`).
    """

    points: Sequence[Mapping[str, Any]] = ()
    cpu_seconds: float = 0.0
    began_at: str = ""
    tried_again: str = ""


def _answers_of(log: EventLog, name: str, asks: Mapping[str, Any]) -> _Answers:
    """Nothing of a study that has not ended, or asked something else."""
    study = open_study(log, name)
    said = {} if study is None else study.user_attrs
    if study is None or "stopped_by" not in said:
        return _Answers()
    if of := tried_again(study):
        return _Answers(tried_again=of)
    trials = study.get_trials(deepcopy=False)
    return _Answers(
        points=best_points(log, name, asks),
        cpu_seconds=sum(float(attrs_of(trial).get("cpu_seconds", 0.0)) for trial in trials),
        began_at=said.get(BEGAN_AT, ""),
    )


def said_of(refresh: Mapping[str, Any]) -> str:
    """A line for the report; empty of a study that began with nothing."""
    if not refresh:
        return ""
    return (
        f"{100 * refresh['changed']:.1f} % of the rows changed since study {refresh['of']}; its"
        f" best value {refresh['value']:.4f}, tried again from {refresh['start']}"
        + _first_of(refresh)
        + how_of(next(iter(refresh.get("beside", ())), {}))
        + f", {refresh['enough']:.4f} is enough"
    )


def _first_of(refresh: Mapping[str, Any]) -> str:
    """Half a line on the point that comes before another one."""
    points = refresh.get("points", ())
    if len(points) < 2 or points[0] == points[-1]:
        return ""
    is_from_stable = refresh["start"] == "stable"
    return f", first by the {'fewest layers' if is_from_stable else 'cheapest point as good'}"


def how_of(beside: Mapping[str, Any]) -> str:
    """Half a line on what is cheaper about the first trial."""
    if FREEZING in beside:
        return ", with layers that stop to learn"
    return ", on what is new and a sample of the other rows" if REHEARSAL in beside else ""


def _cheapest(
    answers: Sequence[Mapping[str, Any]],
    dimensions: Sequence[Dimension],
    circumstances: Circumstances,
    *,
    least: float,
) -> Mapping[str, Any]:
    """Of the points that keep the constraints and are worth at least `least`, the one that is
    expected to cost the fewest CPU-seconds; the best of several.
    Source: the one-standard-error rule of Breiman et al., "Classification and Regression Trees",
    1984.
    """
    best = answers[0]
    as_good = [p for p in answers if p["keeps"] and p["value"] >= least]
    if len(as_good) == 1:
        return best

    def cost(point: Mapping[str, Any]) -> float:
        params = _asked(dimensions, point)
        return circumstances.cost(params) if circumstances.allows(params) else math.inf

    return min(as_good, key=cost)


def _as_it_was(
    dimensions: Sequence[Dimension],
    first: Mapping[str, Any],
    best: Mapping[str, Any],
    circumstances: Circumstances,
) -> tuple[list[Mapping[str, Any]], Mapping[str, Any]]:
    """The points `first` and `best`, or the one where they are one, and what the first to be tried
    has beside the space: from the backbone layers that stop to learn, in a trial of its own before
    the best one. No points where the constraints refuse the best.
    """
    if not circumstances.allows(_asked(dimensions, best)):
        return [], {}
    beside: Mapping[str, Any] = {}
    if not circumstances.starts_from_stable:
        beside = circumstances.cheaper("backbone", _asked(dimensions, first))
    points = [first["told"], best["told"]]
    return (points if beside or first is not best else points[:1]), beside


def _from_stable(
    dimensions: Sequence[Dimension], best: Mapping[str, Any], circumstances: Circumstances
) -> tuple[list[Mapping[str, Any]], Mapping[str, Any]]:
    """The same of a start that knows the rows: less is asked, or, where the constraints refuse
    that, nothing. No points where they refuse `best` too.
    """
    answer = _asked(dimensions, best)
    fewer = _fewer(dimensions, answer)
    points = [point for point in fewer if circumstances.allows({**answer, **point})]
    if not points and circumstances.allows(answer):
        points = [{}]
    if not points:
        return [], {}
    beside = circumstances.cheaper("stable", {**answer, **points[0]})
    chosen = [points[0], points[-1]] if beside else points
    return [{**best["told"], **_as_told(dimensions, point)} for point in chosen], beside


def _asked(dimensions: Sequence[Dimension], point: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of `point` without what it had beside the space."""
    keys = {dimension.key for dimension in dimensions}
    return {k: v for k, v in point["params"].items() if k in keys or k not in BESIDE}


def _as_told(dimensions: Sequence[Dimension], point: Mapping[str, Any]) -> dict[str, Any]:
    return {d.key: d.told(point[d.key]) for d in dimensions if d.key in point}


def _fewer(dimensions: Sequence[Dimension], answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fewest layers and epochs of the space, and the fewest epochs: stable knows already what
    the others taught it. None of what makes no difference to `answer`, or other dimensions count.
    """
    fewest = {
        dimension.key: value
        for dimension in dimensions
        if dimension.key in {LAYERS, EPOCHS} and dimension.key in answer
        for value in [_fewest(dimension)]
        if value is not None
    }
    fewest_epochs = {k: v for k, v in fewest.items() if k == EPOCHS}
    points: list[dict[str, Any]] = []
    for point in (fewest, fewest_epochs):
        tried = {**answer, **point}
        is_new = all({**answer, **other} != tried for other in points)
        if is_new and _counting(dimensions, tried) == _counting(dimensions, answer):
            points.append(point)
    return points


def _counting(dimensions: Sequence[Dimension], values: Mapping[str, Any]) -> set[str]:
    """Keys of the dimensions whose conditions hold."""
    return {d.key for d in dimensions if all(each.holds(values) for each in d.when)}


def _fewest(dimension: Dimension) -> Any:
    points = dimension.points()
    if points is None:
        return round(dimension.low) if dimension.is_whole else dimension.low
    numbers = [p for p in points if isinstance(p, (int, float)) and not isinstance(p, bool)]
    return min(numbers, default=None)
