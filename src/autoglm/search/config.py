from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

from annotated_types import Ge, Gt

from autoglm.config.schema import live


def default_space() -> Mapping[str, Any]:
    return {
        "lr": {"loguniform": [1e-5, 1e-3]},
        "trainable_layers": {"choice": [0, 1, 2, 6]},
        "dropout": {"uniform": [0.0, 0.3]},
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    budget: Annotated[timedelta, Gt(timedelta(0)), live("Wall time that ends the study.")] = (
        timedelta(minutes=10)
    )
    trials: Annotated[int, Ge(1), live("Upper bound of trials.")] = 24
    sampler: Annotated[str, live("Optuna sampler, by name.")] = "tpe"
    space: Annotated[
        str | Mapping[str, Any],
        live(
            "Dimensions: a config key or its unique last part → choice, uniform, loguniform, …"
            " (docs/search.md); or the name of a space that a file of the project registers.",
            whole_below=1,
        ),
    ] = field(default_factory=default_space)
    constraints: Annotated[
        tuple[str, ...],
        live("What a trial must fulfil, as `num_layers * hidden_size <= 4096`."),
    ] = ()
