from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Literal

from annotated_types import Ge

from autoglm.config.schema import Key


def default_space() -> Mapping[str, Any]:
    return {
        "lr": {"loguniform": [1e-5, 1e-3]},
        "trainable_layers": {"choice": [0, 1, 2, 6]},
        "dropout": {"uniform": [0.0, 0.3]},
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    budget: Annotated[timedelta, Key("Wall time that ends the study.")] = timedelta(minutes=10)
    trials: Annotated[int, Ge(1), Key("Upper bound of trials.")] = 24
    sampler: Annotated[Literal["tpe", "random"], Key("Optuna sampler, by name.")] = "tpe"
    space: Annotated[
        Mapping[str, Any],
        Key("Dimensions: a config key or its unique last part → choice, uniform, loguniform, …"),
    ] = field(default_factory=default_space)
