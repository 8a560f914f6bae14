"""What a study found: the pick, the trials, and which of them no other one beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoglm.contracts.stage_chain import Progress
from autoglm.contracts.trial import Removal, StudyResult, Trial
from autoglm.errors import SearchError
from autoglm.evaluation.roles import Role
from autoglm.search.bounds import keeps, unmet
from autoglm.search.folds import interval_of, without
from autoglm.search.standing import WHY, Standing, attrs_of, curve_of, standing_of

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

# So many failures without one value end a study: more of the same would only cost time.
MOST_FAILURES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A metric that is sought beside others."""

    name: str
    maximize: bool


def result_of(
    study: optuna.Study,
    *,
    project: str,
    metric: str,
    sign: int,
    objectives: Sequence[Objective],
    trials: Sequence[FrozenTrial],
    bounds: Sequence[Role] = (),
    removed: tuple[Removal, ...] = (),
) -> StudyResult:
    """Raises: SearchError with the first cause when no trial is complete."""
    found = trials_of(trials, project=project, study=study.study_name, metric=metric)
    complete = [trial for trial in found if trial.state == "complete"]
    if not complete:
        cause = next((trial.cause for trial in found if trial.cause), "no trial was started")
        raise SearchError(f"no trial could be finished; the first cause: {cause}")
    return StudyResult(
        project=project,
        study=study.study_name,
        metric=metric,
        best=pick(complete, sign, bounds),
        trials=tuple(found),
        stopped_by=study.user_attrs["stopped_by"],
        seconds=study.user_attrs["seconds"],
        cpu_seconds=sum(trial.cpu_seconds for trial in found),
        objectives={o.name: "maximize" if o.maximize else "minimize" for o in objectives},
        pareto=pareto(complete, objectives),
        hints=tuple(study.user_attrs.get("hints", ())),
        removed=removed,
        unmet=unmet(bounds, complete),
        refresh=study.user_attrs.get("refresh", {}),
    )


def trials_of(
    trials: Sequence[FrozenTrial], *, project: str, study: str, metric: str
) -> list[Trial]:
    """Those that are over and were trials: what was refused or repeated is none."""
    found = []
    for trial in trials:
        standing = standing_of(trial, 1)
        if standing is None or not standing.is_over:
            continue
        attrs, curve = attrs_of(trial), curve_of(trial)
        metrics: Mapping[str, float] = attrs.get("metrics", {})
        last = trial.value if len(trial.values or ()) == 1 else None
        is_failed = standing.state == "failed"
        found.append(
            Trial(
                project=project,
                study=study,
                number=trial.number,
                params=standing.params,
                state=standing.state,  # type: ignore[arg-type]
                value=None if is_failed else metrics.get(metric, last),
                metrics=metrics,
                chain_key=attrs.get("chain_key", ""),
                num_steps=attrs.get("num_steps", 0),
                seconds=standing.seconds,
                cpu_seconds=standing.cpu_seconds,
                cause=attrs.get("cause", ""),
                curve={str(stage): value for stage, value in curve.items()},
                saved=attrs.get("saved", {}),
                peak=attrs.get("peak", {}),
                folds=tuple(attrs.get("folds", ())),
                interval=tuple(interval_of(metric, attrs.get("folds", ()))),
                expected_cpu_seconds=standing.cost,
                why=tuple(attrs.get(WHY, ())),
            )
        )
    return found


def pick(complete: Sequence[Trial], sign: int, bounds: Sequence[Role] = ()) -> Trial:
    """The best value of those that keep the constraints of evaluate.metrics, of all where none
    does; among equals the one that was expected to be the cheapest, then the first. (What one took
    is another figure each time, and after a kill.)
    """
    kept = [trial for trial in complete if keeps(bounds, trial.metrics)] or complete
    return min(kept, key=lambda t: (-sign * (t.value or 0.0), t.expected_cpu_seconds, t.number))


def pareto(complete: Sequence[Trial], objectives: Sequence[Objective]) -> tuple[int, ...]:
    """Numbers of the trials that no other one equals or betters in all objectives and betters in
    one.
    """
    if not objectives:
        return ()
    points = {
        trial.number: [
            trial.metrics[each.name] * (1 if each.maximize else -1) for each in objectives
        ]
        for trial in complete
    }
    return tuple(
        number
        for number, mine in points.items()
        if not any(
            other != mine and all(a >= b for a, b in zip(other, mine, strict=True))
            for other in points.values()
        )
    )


def all_failed(standings: Sequence[Standing]) -> bool:
    failed = sum(each.state == "failed" for each in standings)
    return failed >= MOST_FAILURES and not any(each.scores for each in standings)


def undefined(number: int, sought: Sequence[str], progress: Progress) -> SearchError | None:
    """Which of `sought` has no value, as an F1 of entities has none on rows without any."""
    metrics = progress.metrics
    missing = [name for name in sought if (v := metrics.get(name)) is None or v != v]
    if not missing:
        return None
    of_folds = ", ".join(map(str, without(missing[0], progress.folds)))
    others = sorted(n for n, value in metrics.items() if n != "loss" and value == value)
    return SearchError(
        f"trial {number} has no {missing[0]}{f' on fold {of_folds}' * bool(of_folds)}: the"
        " validation rows hold nothing that it counts.",
        code="search.undefined",
        next_step=f"Set evaluate.metric to one that they have: {', '.join(others)}."
        if others
        else "Add rows.",
    )
