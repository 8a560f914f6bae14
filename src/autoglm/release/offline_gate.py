"""The gate before any traffic: pure functions on the evaluation's numbers."""

from __future__ import annotations

from collections.abc import Sequence

from autoglm.contracts.evaluation_report import PairedDifference


def judge_first(
    value: float | None,
    majority: float | None,
    over_linear: PairedDifference | None,
    *,
    margin: float,
) -> tuple[str, str]:
    """A first version is released when it beats the majority class and is not below the linear
    floor: its estimate lies at most `margin` below, or the rows cannot tell the two apart. A floor
    that has no value refuses nobody; a candidate that has none shows nothing.
    """
    if value is None:
        return "Inconclusive", "metric_undefined"
    if majority is not None and value <= majority:
        return "Failed", "below_majority"
    if over_linear is not None and over_linear.value < -margin and over_linear.high < 0:
        return "Failed", "below_linear_floor"
    return "Successful", "first_release"


def judge_quality(difference: PairedDifference | None, margin: float) -> tuple[str, str]:
    """Candidate against stable on the same rows: its estimate may lie `margin` below, and it must
    not be shown worse (the interval's upper end below 0). None: one of them has no value.
    """
    if difference is None:
        return "Inconclusive", "metric_undefined"
    if difference.value < -margin or difference.high < 0:
        return "Failed", "quality_worse"
    return "Successful", "better" if difference.low > 0 else "not_worse"


def judge_constraints(
    judged: tuple[str, str], missed: Sequence[str], unknown: Sequence[str]
) -> tuple[str, str]:
    """A constraint that is missed fails what has passed; of one without a value nobody knows."""
    if judged[0] != "Successful":
        return judged
    if missed:
        return "Failed", f"constraint_missed: {'; '.join(missed)}"
    if unknown:
        return "Inconclusive", f"constraint_undefined: {', '.join(unknown)}"
    return judged
