"""What a study begins with when nearly all of its rows were asked about before.

newest whole study of this space and metric, whose run had these settings and nearly these rows
answer  ← its best point; where training starts from the backbone, first with layers that stop to
          learn; from stable, which was trained by it, first with the fewest layers and epochs that
          the space has and a share of the rows that stable knows, then with the fewest epochs
enough  ← its best value less one standard error
train the points, the cheapest first, to their ends
one is enough → the study ends; further points are trained while a twentieth of what the whole study
          took pays for them
none is       → the rows are others after all: the study goes on as a whole one
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoglm.evaluation.resampling import standard_error
from autoglm.search.first_points import EPOCHS, LAYERS
from autoglm.search.space import Dimension
from autoglm.search.standing import Standing, attrs_of
from autoglm.search.warm_start import MOST_STUDIES, best_points, newest_first, open_study
from autoglm.state.event_log import EventLog

REFRESH = "refresh"
FREEZING, REHEARSAL = BESIDE = "training.freezing", "training.rehearsal"
# Of what the whole study took, for points beyond the first.
MOST_SHARE = 0.05


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
        scores = [each.score for each in mine if each.state == "complete" and each.keeps]
        if max((s for s in scores if s is not None), default=-math.inf) < self.enough:
            return False
        spent = sum(each.cpu_seconds for each in mine)
        left = [each.cost for each in mine if each.state == "asked"]
        return not left or spent + min(left) > self.most_cpu_seconds


def refresh_of(
    log: EventLog,
    name: str,
    dimensions: Sequence[Dimension],
    *,
    metric: str,
    maximize: bool,
    changed_since: Callable[[str], float | None],
    starts_from_stable: bool,
    stable_knows: Callable[[str], bool],
    num_rows: int,
    margin: float,
    allows: Callable[[Mapping[str, Any]], bool] = lambda _params: True,
    cheaper: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = lambda _start, _params: {},
) -> Refresh | None:
    """Of the newest whole study of this space and metric since which `changed_since` tells a share
    of rows (it has none of a study with other settings, or about others); None without one.
    `stable_knows` says whether the version that training starts from learnt from its rows.

    `num_rows` validate; `margin` is what a value that is no share may fall short by. Of a trial's
    values `allows` says whether they keep the constraints, and `cheaper` what beside them makes it
    cheaper from `stable` or `backbone`.
    """
    asks = {"space": [str(dimension) for dimension in dimensions], "metric": metric}
    for earlier in newest_first(log, but=name)[:MOST_STUDIES]:
        study = open_study(log, earlier)
        if study is None or study.user_attrs.get("stopped_by", REFRESH) == REFRESH:
            continue  # not ended, or itself no whole one
        best = next(iter(best_points(log, earlier, asks)), None)
        changed = None if best is None else changed_since(earlier)
        if best is None or changed is None:
            continue
        score = float(best["value"]) * (1 if maximize else -1)
        spent = sum(
            float(attrs_of(trial).get("cpu_seconds", 0.0))
            for trial in study.get_trials(deepcopy=False)
        )
        start = "stable" if starts_from_stable else "backbone"
        # Of the very rows that were asked about the answer itself is tried.
        is_known = bool(starts_from_stable and changed and stable_knows(earlier))
        keys = {dimension.key for dimension in dimensions}
        answer = {k: v for k, v in best["params"].items() if k in keys or k not in BESIDE}
        points = _tried(dimensions, answer, is_known=is_known, allows=allows)
        if not points:
            return None
        beside: Mapping[str, Any] = {}
        if is_known or not starts_from_stable:
            beside = cheaper(start, {**answer, **points[0]})
        if beside:
            points = [points[0], points[-1]]
        error = standard_error(abs(score), num_rows)
        return Refresh(
            of=earlier,
            changed=changed,
            start=start,
            value=float(best["value"]),
            enough=score - (margin if error is None else error),
            most_cpu_seconds=MOST_SHARE * spent,
            points=tuple({**best["told"], **_as_told(dimensions, point)} for point in points),
            beside=(beside, {}) if beside else (),
        )
    return None


def said_of(refresh: Mapping[str, Any]) -> str:
    """A line for the report; empty of a study that began with nothing."""
    if not refresh:
        return ""
    return (
        f"{100 * refresh['changed']:.1f} % of the rows since study {refresh['of']}; its best value"
        f" {refresh['value']:.4f}, tried again from {refresh['start']}"
        + how_of(next(iter(refresh.get("beside", ())), {}))
        + f", {refresh['enough']:.4f} is enough"
    )


def how_of(beside: Mapping[str, Any]) -> str:
    """Half a line on what is cheaper about the first trial."""
    if FREEZING in beside:
        return ", with layers that stop to learn"
    return ", on what is new and a sample of the other rows" if REHEARSAL in beside else ""


def _tried(
    dimensions: Sequence[Dimension],
    answer: Mapping[str, Any],
    *,
    is_known: bool,
    allows: Callable[[Mapping[str, Any]], bool],
) -> list[dict[str, Any]]:
    """In what the points differ from `answer`, the first to be tried first: where stable knows the
    rows (`is_known`) in less, else, or where the constraints refuse that, in nothing. Empty where
    they refuse the answer too.
    """
    fewer = _fewer(dimensions, answer) if is_known else []
    allowed = [point for point in fewer if allows({**answer, **point})]
    return allowed or ([{}] if allows(answer) else [])


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
