"""Which of the asked trials is trained next, and which the rest of the budget no longer pays for.

A trial that its budget cuts off has cost all and told nothing, so it is not begun. Asked trials may
be kept room for: those that learn with most of the model, for longest, which is where many a study
ends and which one that begins with what is cheap would not reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from autoglm.search.config import SearchConfig
from autoglm.search.costs import ROUNDING, Trainings
from autoglm.search.standing import Standing

# After so many asked trials that the budget does not pay for, no cheaper one is waited for.
MOST_TOO_DEAR = 8
# What is expected comes from a tenth of a second's measurement; trials tell how far off it is. One
# that began with loading a model, or whose states were stored, tells little: hence the bounds.
LEAST = {"cpu_budget": 0.5, "budget": 0.05}  # several threads use less wall time than CPU time
MOST = 4.0

Budget = Literal["budget", "cpu_budget", "full_trainings"]


def next_affordable(
    asked: Sequence[Standing],
    others: Sequence[Standing],
    config: SearchConfig,
    trainings: Trainings,
    *,
    seconds_left: float,
    at_work: Sequence[Standing] = (),
) -> Standing | None:
    """The cheapest of `asked` that leaves room for the kept ones, then those; None when none fits.

    `seconds_left` of wall time; of `others`, those `at_work` are still to be paid for. Before
    any value is there, nobody knows how fast trials are: the cheapest is taken whatever time it
    takes, and whatever it costs where none leaves room and none is at work.
    """
    cheapest_first = sorted(asked, key=lambda each: (each.cost, each.number))
    if has_value := any(each.state == "complete" for each in others):
        _which, most = tighter_budget(
            others, config, trainings, seconds_left=seconds_left, at_work=at_work
        )
    else:
        most = trainings.left(others, at_work)
    most += ROUNDING * abs(most)
    kept: list[Standing] = []
    for each in asked:
        if each.has_room and sum(k.cost for k in kept) + each.cost <= most:
            kept.append(each)
    fitting = (
        each
        for each in cheapest_first
        if each.cost + sum(k.cost for k in kept if k is not each) <= most
    )
    must_begin = not has_value and not at_work and cheapest_first
    return next(fitting, cheapest_first[0] if must_begin else None)


def tighter_budget(
    others: Sequence[Standing],
    config: SearchConfig,
    trainings: Trainings,
    *,
    seconds_left: float,
    at_work: Sequence[Standing] = (),
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
    pays_for: dict[Budget, float] = {"full_trainings": trainings.left(others, at_work)}
    for name, rest in left.items():
        factor = min(max(paid[name] / cost, LEAST[name]), MOST) if cost else 1.0
        # Beside each other trials take the same time, but not the same CPU time.
        begun = sum(each.cost for each in at_work) if name == "cpu_budget" else 0.0
        pays_for[name] = rest / factor - begun
    which = min(pays_for, key=lambda name: pays_for[name])
    return which, pays_for[which]
