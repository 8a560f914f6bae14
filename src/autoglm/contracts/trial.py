from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One point of the search space and what it was worth on the validation rows.

    A `stopped` trial was not trained to its end: `value` is what it had come to. `curve` is stage →
    value at its end. `cpu_seconds` is what was paid for it; `saved`, by lever, what was not
    (`stage_tree`: steps that others had made, or we before we were killed). Of a cross-validated
    trial `metrics` are means, `folds` those of each fold, `interval` the 95 % interval of `value`.
    `expected_cpu_seconds` were reckoned before it began, `why` of what; `peak` is the most memory
    that training took, bytes by kind.
    """

    project: str
    study: str
    number: int
    params: Mapping[str, Any]
    state: Literal["complete", "stopped", "failed"]
    value: float | None
    metrics: Mapping[str, float]
    chain_key: str
    num_steps: int
    seconds: float
    cpu_seconds: float
    cause: str = ""
    curve: Mapping[str, float] = field(default_factory=dict)
    saved: Mapping[str, float] = field(default_factory=dict)
    folds: tuple[Mapping[str, float], ...] = ()
    interval: tuple[float, ...] = ()
    peak: Mapping[str, int] = field(default_factory=dict)
    expected_cpu_seconds: float = 0.0
    why: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """A dimension of the space that was not asked, what stood in its place, by what and why."""

    key: str
    by: Literal["task", "prior", "condition", "probe"]
    value: Any
    evidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Unmet:
    """A constraint of evaluate.metrics that `missed_by` of the `of` complete trials miss, in a
    study in which none keeps all. `nearest` is the value nearest to the `bound`, of `trial`; None
    where it is undefined in all.
    """

    metric: str
    bound: str
    missed_by: int
    of: int
    nearest: float | None
    trial: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """`best` is picked by the validation rows alone, by `metric`, among the complete trials.

    `stopped_by`: `trials | budget | cpu_budget | full_trainings | until_gain | refresh` (an earlier
    study's answer holds) `| space` (every point was tried).
    `objectives`: metric → `maximize | minimize`; `pareto`: numbers of the complete trials that no
    other one beats in all of them. `hints`: points that earlier studies gave to this one.
    `removed`: dimensions that were not asked. `unmet`: constraints that stand in the way where no
    trial keeps all; `best` is then the best of all, and a run does not release it. `refresh`: the
    earlier answer that was tried first (search.refresh.Refresh), when there was one.
    """

    project: str
    study: str
    metric: str
    best: Trial
    trials: tuple[Trial, ...]
    stopped_by: str
    seconds: float
    cpu_seconds: float = 0.0
    objectives: Mapping[str, str] = field(default_factory=dict)
    pareto: tuple[int, ...] = ()
    hints: tuple[Mapping[str, Any], ...] = ()
    removed: tuple[Removal, ...] = ()
    unmet: tuple[Unmet, ...] = ()
    refresh: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether it asked its own question, instead of finding that an earlier answer holds."""
        return self.stopped_by != "refresh"
