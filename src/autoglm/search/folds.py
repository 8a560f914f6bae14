"""Cross-validation: a trial is one training per fold, and its value is the mean over them."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from autoglm.contracts.record import digest
from autoglm.contracts.stage_chain import FOLD, Cost, Progress, Stage, StageChain
from autoglm.errors import SearchError
from autoglm.plugins.kinds import TrialRunner


class Folds:
    """A TrialRunner over another one. A stage of it is that stage of every fold, so a trial that is
    judged at a rung has trained all its folds to there. Caches and stages are those of `runner`.
    """

    def __init__(self, runner: TrialRunner, num: int) -> None:
        self._runner, self._num = runner, num
        self._chains: dict[str, list[StageChain]] = {}

    def plan(self, params: Mapping[str, Any]) -> StageChain:
        chains = self._chains_of(params)
        stages = tuple(
            Stage(
                key=digest(*(stage.key for stage in same)),
                parent=digest(*(stage.parent for stage in same)),
                settings=same[0].settings,
                num_steps=sum(stage.num_steps for stage in same),
                seed=same[0].seed,
                data_order=digest(*(stage.data_order for stage in same)),
            )
            for same in zip(*(chain.stages for chain in chains), strict=True)
        )
        return StageChain(project=chains[0].project, params=dict(params), stages=stages)

    def cost(self, chain: StageChain) -> Cost:
        """Of all folds, asked of the first, but for what it shares with the others."""
        costs = [self._runner.cost(each) for each in self._chains_of(chain.params)]
        return Cost(
            cpu_seconds=sum(cost.cpu_seconds for cost in costs),
            disk_bytes=sum(cost.disk_bytes for cost in costs),
            num_steps=sum(cost.num_steps for cost in costs),
            whole=sum(cost.whole for cost in costs),
            why=(f"{self._num} folds, as the first:", *costs[0].why),
        )

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        """Fold by fold. A metric that one fold has no value of has none."""
        stage = chain.boundaries.index(to_step)
        done = [
            self._runner.advance(each, each.boundaries[stage], cancel=cancel)
            for each in self._chains_of(chain.params)
        ]
        kinds = sorted({kind for each in done for kind in each.peak})
        levers = sorted({lever for each in done for lever in each.saved})
        return Progress(
            key=chain.stages[stage].key,
            step=to_step,
            num_steps=chain.num_steps,
            metrics=means_of([each.metrics for each in done]),
            cpu_seconds=sum(each.cpu_seconds for each in done),
            reused_steps=sum(each.reused_steps for each in done),
            folder=done[0].folder,
            saved={name: sum(each.saved.get(name, 0.0) for each in done) for name in levers},
            peak={kind: max(each.peak.get(kind, 0) for each in done) for kind in kinds},
            is_stopped=all(each.is_stopped for each in done),
            folds=tuple(each.metrics for each in done),
        )

    def _chains_of(self, params: Mapping[str, Any]) -> list[StageChain]:
        name = digest(params)
        if name not in self._chains:
            folds = [f"{number}/{self._num}" for number in range(1, self._num + 1)]
            self._chains[name] = [self._runner.plan({**params, FOLD: fold}) for fold in folds]
        return self._chains[name]


def over_folds(runner: TrialRunner, num: int) -> TrialRunner:
    """`runner` itself without folds (0). Raises: SearchError search.folds."""
    if num == 1:
        raise SearchError(
            "search.folds is 1: one fold leaves no rows to learn from.",
            code="search.folds",
            next_step="Set 2 or more, or 0 for the usual training and validation rows.",
            exit_code=2,
        )
    return Folds(runner, num) if num else runner


def means_of(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the metrics that every fold has; an undefined value is no 0, so its mean is undefined."""
    shared = set.intersection(*(set(each) for each in folds))
    return {
        name: statistics.fmean(each[name] for each in folds)
        for name in folds[0]
        if name in shared and not any(_is_undefined(each[name]) for each in folds)
    }


def without(metric: str, folds: Sequence[Mapping[str, float]]) -> list[int]:
    """The folds, counted from 1, that have no value of `metric`."""
    return [n for n, each in enumerate(folds, start=1) if _is_undefined(each.get(metric))]


def interval_of(metric: str, folds: Sequence[Mapping[str, float]]) -> list[float]:
    """95 % of the mean by Student's t; empty where it is undefined. The folds' trainings share most
    rows, so it is rather too narrow (Bengio and Grandvalet, 2004, JMLR 5).
    """
    if len(folds) < 2 or without(metric, folds):
        return []
    from scipy.special import stdtrit

    values = [each[metric] for each in folds]
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * spread / len(values) ** 0.5
    return [mean - half, mean + half]


def _is_undefined(value: float | None) -> bool:
    return value is None or value != value
