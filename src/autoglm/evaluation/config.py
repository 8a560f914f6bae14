from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from autoglm.config.schema import Key, Share


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    metric: Annotated[
        Literal["accuracy", "macro_f1"], Key("What picks the best trial and gates the candidate.")
    ] = "macro_f1"
    margin: Annotated[
        Share, Ge(0), Key("How far below stable the candidate's estimate may lie.")
    ] = 0.01
