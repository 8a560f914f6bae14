from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge

from autoglm.config.schema import Share, live


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    metric: Annotated[
        str,
        live("Evaluator, by name, that picks the best trial and gates. `auto`: the task's own."),
    ] = "auto"
    margin: Annotated[
        Share, Ge(0), live("How far below stable the candidate's estimate may lie.")
    ] = 0.01
    metrics: Annotated[
        Mapping[str, Any],
        live(
            "More evaluators, by name → `report`, a constraint {at_least: x} or {at_most: x}, or"
            " `objective` (docs/evaluators.md); `latency_ms` and `size_bytes` are measured.",
            whole_below=1,
        ),
    ] = field(default_factory=dict)
    slices: Annotated[
        tuple[Mapping[str, Any], ...],
        live(
            "Groups of test rows that are scored apart: {by: length}, {by: label},"
            " {by: column, column: NAME}."
        ),
    ] = ()
