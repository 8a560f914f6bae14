"""The gate before any traffic: pure functions on the evaluation's numbers."""

from __future__ import annotations

from autoglm.contracts.evaluation_report import PairedDifference


def judge_first(
    value: float, majority: float, over_linear: PairedDifference, *, margin: float
) -> tuple[str, str]:
    """A first version is released when it beats the majority class and is not below the linear
    floor: its estimate lies at most `margin` below, or the rows cannot tell the two apart.
    """
    if value <= majority:
        return "Failed", "below_majority"
    if over_linear.value < -margin and over_linear.high < 0:
        return "Failed", "below_linear_floor"
    return "Successful", "first_release"


def judge_quality(difference: PairedDifference, margin: float) -> tuple[str, str]:
    """Candidate against stable on the same rows: its estimate may lie `margin` below, and it must
    not be shown worse (the interval's upper end below 0).
    """
    if difference.value < -margin or difference.high < 0:
        return "Failed", "quality_worse"
    return "Successful", "better" if difference.low > 0 else "not_worse"
