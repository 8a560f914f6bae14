from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from autoglm.config.schema import Share, live


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
    cpu_budget: Annotated[
        Annotated[timedelta, Gt(timedelta(0))] | None,
        live("CPU time of training that ends the study."),
    ] = None
    full_trainings: Annotated[
        Annotated[float, Gt(0)] | None,
        live(
            "Compute that ends the study, in trainings with the most layers and epochs of the space"
            " (docs/search.md): grows with the rows, not with the machine."
        ),
    ] = None
    trials: Annotated[int, Ge(1), live("Upper bound of trials.")] = 24
    workers: Annotated[
        int, Ge(1), live("Training workers, each of which trains a trial; they share the cores.")
    ] = 1
    folds: Annotated[
        int, Ge(0), live("Cross-validation: a trial is trained once per fold; 0 = no folds.")
    ] = 0
    until_gain: Annotated[
        Annotated[float, Gt(0)] | None,
        live("Ends the study when as many trials again would add less to the best value."),
    ] = None
    sampler: Annotated[str, live("Optuna sampler, by name.")] = "tpe"
    scheduler: Annotated[
        Literal["none", "median", "asha", "hyperband"],
        live("Which trials are trained on: judged at the ends of epochs (docs/search.md)."),
    ] = "none"
    reduction_factor: Annotated[
        int, Ge(2), live("asha, hyperband: one of so many trials goes on from a rung to the next.")
    ] = 3
    min_epochs: Annotated[int, Ge(1), live("Epochs before a trial is judged.")] = 1
    objectives: Annotated[
        tuple[str, ...],
        live("Evaluators that are sought together; evaluate.metric picks among the trials."),
    ] = ()
    branch: Annotated[
        bool,
        live(
            "Every second proposal goes on from a good trial's stored epochs, where points begin"
            " alike (docs/search.md)."
        ),
    ] = False
    warm_start: Annotated[
        bool, live("Try the best points of the project's earlier studies of this space first.")
    ] = True
    refresh: Annotated[
        Share,
        Ge(0),
        Lt(1),
        live(
            "Where at most this share of the rows changed since the last whole study, its answer is"
            " tried first, and ends the study if it holds (docs/search.md); 0 = never."
        ),
    ] = 0.05
    rehearsal: Annotated[
        Share,
        Gt(0),
        Le(1),
        live("`training.rehearsal` of the first trial of a refresh from stable; 1 = all rows."),
    ] = 0.1
    space: Annotated[
        str | Mapping[str, Any],
        live(
            "Dimensions: a config key or its unique last part → choice, uniform, loguniform, …"
            " (docs/search.md); or the name of a space that a file of the project registers.",
            whole_below=1,
        ),
    ] = field(default_factory=default_space)
    prior: Annotated[
        Mapping[str, Any],
        live(
            "What is believed of dimensions: a value freezes one, a range narrows it"
            " (docs/search.md).",
            whole_below=1,
        ),
    ] = field(default_factory=dict)
    probe: Annotated[
        bool, live("Leave out dimensions that heads over kept features do not feel.")
    ] = False
    constraints: Annotated[
        tuple[str, ...],
        live("What a trial must fulfil, as `num_layers * hidden_size <= 4096`."),
    ] = ()
