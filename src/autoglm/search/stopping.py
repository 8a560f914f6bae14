"""When a study has done enough."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

from autoglm.clock import Clock
from autoglm.search.config import SearchConfig
from autoglm.search.costs import Trainings
from autoglm.search.standing import Standing

# The expected gain of fewer values is a guess.
MIN_VALUES = 8


class CancelOrDeadline(threading.Event):
    """What a trial is told to stop by: the user's `cancel`, the study's deadline once armed, or the
    end of a study that goes on without what is being trained.
    """

    def __init__(self, cancel: threading.Event, clock: Clock, deadline: float) -> None:
        super().__init__()
        self._cancel, self._clock, self._deadline = cancel, clock, deadline
        self.is_armed = False
        self.is_abandoned = False

    @property
    def is_cancelled(self) -> bool:
        return self._cancel.is_set()

    @property
    def is_late(self) -> bool:
        return self._clock.monotonic() >= self._deadline

    @property
    def seconds_left(self) -> float:
        return self._deadline - self._clock.monotonic()

    def is_set(self) -> bool:
        return self.is_cancelled or self.is_abandoned or (self.is_armed and self.is_late)


def expected_gain(scores: Sequence[float]) -> float:
    """What as many trials again may be expected to add to the best of `scores` (in the order of the
    trials); infinite for fewer than 8.

    It is what the last doubling added, which is the larger of two figures: the best of all less the
    best of a random half (all halves weighed alike, so that luck in the order counts for nothing),
    and the best of all less the best of the earlier half (so that a sampler that still learns is
    not ended). Of independent trials the first is, but for a term of 1 / n, an unbiased estimate of
    the next doubling where values thin out exponentially above; it is too high where they have an
    upper bound, as accuracy has: the study then ends later, not sooner.
    Source: order statistics of a sample without replacement (Arnold et al., "A First Course in
    Order Statistics", 1992). Optuna's terminator (Makarova et al., "Automatic Termination for
    Hyperparameter Optimization", 2022) bounds the regret of a Gaussian process instead; it wants
    20 trials, fits one after each, and is deprecated since Optuna 4.9.
    """
    num = len(scores)
    if num < MIN_VALUES:
        return math.inf
    ranked, half = sorted(scores), num // 2
    # Of all halves, this share has ranked[i] (0 = lowest) as its best one.
    shares = [math.comb(i, half - 1) / math.comb(num, half) for i in range(num)]
    of_halves = sum(share * score for share, score in zip(shares, ranked, strict=True))
    return ranked[-1] - min(of_halves, max(scores[:half]))


def reason_to_stop(
    config: SearchConfig,
    trainings: Trainings,
    standings: Sequence[Standing],
    stop: CancelOrDeadline,
) -> str:
    """The bound that is reached, `""` when none is. (How many trials there may be is asked when
    the next one is wanted.)
    """
    if stop.is_late:
        return "budget"
    spent = sum(each.cpu_seconds for each in standings)
    if config.cpu_budget is not None and spent >= config.cpu_budget.total_seconds():
        return "cpu_budget"
    if trainings.left(standings) <= 0.0:
        return "full_trainings"
    # Paused trials count with what they have come to.
    sound = [each for each in standings if each.state != "failed"]
    scores = [each.score for each in sound if each.score is not None]
    if config.until_gain is not None and expected_gain(scores) < config.until_gain:
        return "until_gain"
    return ""
