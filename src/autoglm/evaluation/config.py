from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

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
