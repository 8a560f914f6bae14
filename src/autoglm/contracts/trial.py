from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One point of the search space and what it was worth on the validation rows."""

    project: str
    study: str
    number: int
    params: Mapping[str, Any]
    state: Literal["complete", "failed"]
    value: float | None
    metrics: Mapping[str, float]
    chain_key: str
    num_steps: int
    seconds: float
    cpu_seconds: float
    cause: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """`best` is picked by the validation rows alone."""

    project: str
    study: str
    metric: str
    best: Trial
    trials: tuple[Trial, ...]
    stopped_by: str
    seconds: float
