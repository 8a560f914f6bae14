"""Which trials keep the constraints of `evaluate.metrics`, and by how much the others miss them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from autoglm.contracts.trial import Trial, Unmet
from autoglm.evaluation.roles import Role


def keeps(bounds: Sequence[Role], metrics: Mapping[str, float]) -> bool:
    """A value that is undefined keeps nothing."""
    return not any(_misses(bound, metrics) for bound in bounds)


def unmet(bounds: Sequence[Role], complete: Sequence[Trial]) -> tuple[Unmet, ...]:
    """The constraints that stand in the way; empty when a trial keeps all, or there is none."""
    if not complete or any(keeps(bounds, trial.metrics) for trial in complete):
        return ()
    found = []
    for bound in bounds:
        missed = [trial for trial in complete if _misses(bound, trial.metrics)]
        if not missed:
            continue
        known = [t for t in complete if not bound.is_unknown(t.metrics.get(bound.name))]
        nearest = min(known, key=lambda t: (_distance(bound, t.metrics[bound.name]), t.number),
                      default=None)  # fmt: skip
        found.append(
            Unmet(
                metric=bound.name,
                bound=bound.bound,
                missed_by=len(missed),
                of=len(complete),
                nearest=None if nearest is None else nearest.metrics[bound.name],
                trial=None if nearest is None else nearest.number,
            )
        )
    return tuple(found)


def said_of(missed: Sequence[Unmet]) -> str:
    """In words; empty where a trial keeps all constraints."""
    if not missed:
        return ""
    joint = "" if any(each.missed_by == each.of for each in missed) else " together"
    return f"no trial keeps all constraints{joint}: {'; '.join(map(_said, missed))}"


def _said(each: Unmet) -> str:
    by = f"all {each.of}" if each.missed_by == each.of else f"{each.missed_by} of {each.of}"
    nearest = "undefined" if each.nearest is None else f"at best {each.nearest:.6g}"
    where = "" if each.trial is None else f" (trial {each.trial})"
    return f"{each.metric} {each.bound}, missed by {by}, {nearest}{where}"


def _misses(bound: Role, metrics: Mapping[str, float]) -> bool:
    value = metrics.get(bound.name)
    return bool(bound.missed(value)) or bound.is_unknown(value)


def _distance(bound: Role, value: float) -> float:
    low = -math.inf if bound.at_least is None else bound.at_least
    high = math.inf if bound.at_most is None else bound.at_most
    return max(low - value, value - high, 0.0)
