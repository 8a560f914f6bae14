"""Whose weights a trial ends with (`training.keep`).

best   the epoch with the best score; of equals the one with the lower loss
last   the last one
auto   the last one that is no more than a standard error worse than the best so far

Few rows validate, and of several epochs one is the best of them by luck; at the end of a schedule,
where the rate is smallest, a model is as good as it gets, unless it fits the training rows too
closely, which shows. A trial's own value is then no best of several either, so trials compare more
fairly. `auto` is as `best` where the metric is no share of right answers, whose error would be
another one, and with early stopping, which ends before the schedule does. The model version that
training started from, which is no lucky one of several, is kept while no epoch is as good.
Source: the one-standard-error rule, Breiman et al., "Classification and Regression Trees", 1984.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autoglm.evaluation.metrics import SHARES
from autoglm.evaluation.resampling import standard_error
from autoglm.training.state import TrainingState

Rank = tuple[float, float, float]


class KeptEpoch:
    """`num_rows` validate; `knows`: training started from a model version, which has answers."""

    def __init__(
        self, settings: Mapping[str, Any], metric: str, *, num_rows: int, knows: bool
    ) -> None:
        self._metric, self._num_rows, self._knows = metric, num_rows, knows
        rule = str(settings["keep"])
        is_best = metric not in SHARES or settings["early_stopping"]
        self._rule = "best" if rule == "auto" and is_best else rule

    def takes(self, state: TrainingState, *, epoch: int) -> bool:
        """Whether `state.metrics`, of this epoch, take the place of those kept. Writes down in
        `state` what is the best score.
        """
        now = rank(state.metrics, self._metric, has_learnt=epoch > 0 or not self._knows)
        if now[0] > state.best_score:
            state.best_score, state.improved_epoch = now[0], epoch
        if self._rule == "last" and not math.isinf(now[0]):
            return True
        is_from_stable = self._knows and state.best_epoch == 0
        error = standard_error(state.best_score, self._num_rows)
        if self._rule == "auto" and not is_from_stable and error is not None:
            return now[0] >= state.best_score - error
        return now > rank(state.best_metrics, self._metric, has_learnt=not is_from_stable)


def rank(metrics: Mapping[str, float], metric: str, *, has_learnt: bool) -> Rank:
    """What is better compares greater: any number than an undefined score (NaN), that than none. Of
    equal scores (few rows have few of them) one that has learnt from these rows beats the model
    version it started from, then the lower loss wins.
    """
    if not metrics:
        return (-math.inf, -math.inf, -math.inf)
    score, loss = metrics[metric], metrics["loss"]
    return (
        -math.inf if math.isnan(score) else score,
        float(has_learnt),
        -math.inf if math.isnan(loss) else -loss,
    )
