from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from autoglm.config.schema import Key


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    backbone: Annotated[
        str, Key("A folder, or `package:NAME` for weights that a Python package ships.")
    ]
    task: Annotated[Literal["text-classification"], Key("What the model learns to do.")] = (
        "text-classification"
    )
    attention: Annotated[Literal["sdpa", "eager"], Key("Attention implementation, by name.")] = (
        "sdpa"
    )
    pooling: Annotated[
        Literal["auto", "mean", "cls"],
        Key("How token vectors become one. `auto`: the backbone's own (mean if it says nothing)."),
    ] = "auto"
    start_from: Annotated[
        Literal["auto", "backbone", "stable"],
        Key("Where training starts. `auto`: from stable when it has the same labels and backbone."),
    ] = "auto"
