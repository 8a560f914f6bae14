"""What trials are expected to cost, and a budget in that (`search.full_trainings`).

A *full training* is that of the project's own values with as many layers and epochs as the space
allows, as if nothing were stored. What it costs is asked once per study and kept in it. Nothing
that was measured in a trial counts, so a study that is killed, or runs on a slower machine, begins
the same first trials.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoglm.contracts.stage_chain import Cost, StageChain
from autoglm.errors import ModelError, SearchError, TrainingError
from autoglm.plugins.kinds import TrialRunner
from autoglm.search.config import SearchConfig
from autoglm.search.standing import Standing

if TYPE_CHECKING:
    import optuna

    from autoglm.search.proposals import Proposals

UNIT = "full_training"
# Sums of costs that are equal on paper differ in their last bits.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainings:
    """`num` trainings of `unit` expected CPU-seconds; no bound where `num` is None or nobody can
    tell what a training costs. Trials of the numbers `free` answer for an earlier study.
    """

    num: float | None = None
    unit: float = 0.0
    free: Collection[int] = ()

    def left(self, standings: Sequence[Standing], at_work: Sequence[Standing] = ()) -> float:
        """Expected CPU-seconds, less what those `at_work` will still spend."""
        if self.num is None or not self.unit:
            return math.inf
        spent = sum(each.spent for each in standings if each.number not in self.free)
        begun = sum(each.cost - each.spent for each in at_work if each.number not in self.free)
        left = self.num * self.unit - spent - begun
        return 0.0 if abs(left) < ROUNDING * self.unit else left


def expected(runner: TrialRunner, params: Mapping[str, Any]) -> tuple[StageChain | None, Cost]:
    """The trial's chain and what it will cost. One that cannot be planned costs nothing: it fails
    when its turn comes, first.
    """
    try:
        chain = runner.plan(params)
        return chain, runner.cost(chain)
    except (ModelError, TrainingError, SearchError) as error:
        if error.retryable:
            raise
        return None, Cost(cpu_seconds=0.0, disk_bytes=0, num_steps=0, whole=0.0, why=(str(error),))


def trainings_of(
    config: SearchConfig, study: optuna.Study, proposals: Proposals, runner: TrialRunner
) -> Trainings:
    """Of this study; what a full training is expected to cost is written into it."""
    if config.full_trainings is None:
        return Trainings()
    if UNIT not in study.user_attrs:
        costs = [expected(runner, values)[1].whole for values in proposals.first_values()]
        study.set_user_attr(UNIT, max(costs, default=0.0))
    free = range(len(study.user_attrs.get("refresh", {}).get("points", ())))
    return Trainings(num=config.full_trainings, unit=float(study.user_attrs[UNIT]), free=free)
