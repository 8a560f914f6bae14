from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A metric's value on `rows` rows with a 95 % interval. `value` is None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """Candidate minus stable on the same rows: mean and 95 % interval, `wins`/`losses` are rows
    that only the candidate / only stable answers rightly.
    """

    value: float
    low: float
    high: float
    wins: int
    losses: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceScore:
    """Scores of one group of the test rows (evaluation.slices), by evaluator; stable's are empty
    without one.
    """

    by: str
    name: str
    rows: int
    candidate: Mapping[str, Score]
    stable: Mapping[str, Score]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """The offline gate's evidence: candidate, stable and the floors on the same test rows.

    `linear_floor` is of a linear model that reads what the model reads; `linear_whole` of one that
    reads whole texts, where `max_length` cuts much off. Both are None of a refresh that stable
    judges, and where the metric judges shares; of answers that are written `majority` too.
    `verdict` uses the release's words; `reason` says it in one line. `constraints` are evaluators
    with the bound that they must keep, `missed` those that do not, in words. `problems` says of
    evaluators that only report why they have no score.
    """

    project: str
    run_id: str
    metric: str
    candidate: Mapping[str, Score]
    stable: Mapping[str, Score]
    difference: PairedDifference | None
    majority: float | None
    linear_floor: float | None
    test_rows: int
    verdict: str
    reason: str
    linear_whole: float | None = None
    slices: tuple[SliceScore, ...] = ()
    constraints: Mapping[str, str] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
