"""Which of the asked trials is trained next, and which the rest of the budget no longer pays for.

A trial that its budget cuts off has cost all and told nothing, so it is not begun. Asked trials may
be kept room for: those that learn with most of the model, for longest, which is where many a study
ends and which one that begins with what is cheap would not reach.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from autoglm.contracts.stage_chain import Cost, StageChain
from autoglm.errors import ModelError, SearchError, TrainingError
from autoglm.plugins.kinds import TrialRunner
from autoglm.search.config import SearchConfig
from autoglm.search.standing import Standing, left_of

# After so many asked trials that the budget does not pay for, no cheaper one is waited for.
MOST_TOO_DEAR = 8
# What is expected comes from a tenth of a second's measurement; trials tell how far off it is. One
# that began with loading a model, or whose states were stored, tells little: hence the bounds.
LEAST = {"cpu_budget": 0.5, "budget": 0.05}  # several threads use less wall time than CPU time
MOST = 4.0

Budget = Literal["budget", "cpu_budget", "full_trainings"]


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
        return None, Cost(cpu_seconds=0.0, disk_bytes=0, num_steps=0, why=(str(error),))


def next_affordable(
    asked: Sequence[Standing],
    others: Sequence[Standing],
    config: SearchConfig,
    *,
    seconds_left: float,
    at_work: Sequence[Standing] = (),
) -> Standing | None:
    """The cheapest of `asked` that leaves room for the kept ones, then those; None when none fits.

    `seconds_left` of wall time; of `others`, those `at_work` are still to be paid for. Before
    any value is there, nobody knows how fast trials are: the cheapest is taken whatever time it
    takes, and whatever it costs where none leaves room.
    """
    cheapest_first = sorted(asked, key=lambda each: (each.cost, each.number))
    most = math.inf
    if has_value := any(each.state == "complete" for each in others):
        _which, most = tighter_budget(
            others, config, seconds_left=seconds_left, at_work=at_work, asked=asked
        )
    elif config.full_trainings is not None:
        most = _trainings_left(config.full_trainings, [*others, *asked], at_work)
    kept: list[Standing] = []
    for each in asked:
        if each.has_room and sum(k.cost for k in kept) + each.cost <= most:
            kept.append(each)
    fitting = (
        each
        for each in cheapest_first
        if each.cost + sum(k.cost for k in kept if k is not each) <= most
    )
    return next(fitting, None if has_value or not cheapest_first else cheapest_first[0])


def tighter_budget(
    others: Sequence[Standing],
    config: SearchConfig,
    *,
    seconds_left: float,
    at_work: Sequence[Standing] = (),
    asked: Sequence[Standing] = (),
) -> tuple[Budget, float]:
    """The budget that has least left, and how much expected cost that pays for."""
    told = [each for each in others if each.state == "complete" and each.cost]
    cost = sum(each.cost for each in told)
    left: dict[Budget, float] = {"budget": seconds_left}
    paid: dict[Budget, float] = {"budget": sum(each.seconds for each in told)}
    if config.cpu_budget is not None:
        spent = sum(each.cpu_seconds for each in others)
        left["cpu_budget"] = config.cpu_budget.total_seconds() - spent
        paid["cpu_budget"] = sum(each.cpu_seconds for each in told)
    pays_for: dict[Budget, float] = {}
    for name, rest in left.items():
        factor = min(max(paid[name] / cost, LEAST[name]), MOST) if cost else 1.0
        # Beside each other trials take the same time, but not the same CPU time.
        begun = sum(each.cost for each in at_work) if name == "cpu_budget" else 0.0
        pays_for[name] = rest / factor - begun
    if config.full_trainings is not None:
        known = [*others, *asked]
        pays_for["full_trainings"] = _trainings_left(config.full_trainings, known, at_work)
    which = min(pays_for, key=lambda name: pays_for[name])
    return which, pays_for[which]


def _trainings_left(
    num: float, standings: Sequence[Standing], at_work: Sequence[Standing]
) -> float:
    """Expected cost that is left of so many trainings, less what is being spent."""
    return left_of(num, standings) - sum(each.cost - each.spent for each in at_work)
