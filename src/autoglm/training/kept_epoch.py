"""Whose weights a trial ends with (`training.keep`).

best   the epoch with the best score; of equals the one with the lower loss
last   the last one
auto   the last one that is no more than a standard error worse than the best so far

Few rows validate, and of several epochs one is the best of them by luck; at the end of a schedule,
where the rate is smallest, a model is as good as it gets, unless it fits the training rows too
closely, which shows. A trial's own value is then no best of several either, so trials compare more
fairly. `auto` is as `best` where rows are not answered rightly or wrongly (regression, whose score
has another error), and with early stopping, which ends before the schedule does.
Source: the one-standard-error rule, Breiman et al., "Classification and Regression Trees", 1984.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autoglm.evaluation.resampling import standard_error
from autoglm.training.state import TrainingState

Rank = tuple[float, float, float]


class KeptEpoch:
    """`num_rows` validate; `counts_answers`: each is right or wrong; `knows`: training started from
    a model version, which knows answers already.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        metric: str,
        *,
        num_rows: int,
        counts_answers: bool,
        knows: bool,
    ) -> None:
        self._metric, self._num_rows, self._knows = metric, num_rows, knows
        rule = str(settings["keep"])
        is_noisy = counts_answers and not settings["early_stopping"]
        self._rule = rule if rule != "auto" or is_noisy else "best"

    def takes(self, state: TrainingState, *, epoch: int) -> bool:
        """Whether `state.metrics`, of this epoch, take the place of those kept. Writes down in
        `state` what is the best score.
        """
        now = rank(state.metrics, self._metric, has_learnt=epoch > 0 or not self._knows)
        if now[0] > state.best_score:
            state.best_score, state.improved_epoch = now[0], epoch
        if self._rule == "best" or math.isinf(now[0]):
            has_learnt = state.best_epoch > 0 or not self._knows
            return now > rank(state.best_metrics, self._metric, has_learnt=has_learnt)
        error = standard_error(state.best_score, self._num_rows) or 0.0
        return self._rule == "last" or now[0] >= state.best_score - error


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
