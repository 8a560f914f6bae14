"""Optuna samplers by name, made from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def tpe(seed: int) -> BaseSampler:
    """Tree-structured Parzen estimator after six random trials."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=6)


def random(seed: int) -> BaseSampler:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)
