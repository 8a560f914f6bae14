"""Proposals that go on from what is stored: a good trial's first stages stay, what only its later
stages feel is another.

Which settings these are is not known by name: the plan of a point with another value says whether
it begins with the same stages. (With a rate that falls to 0 at the end nothing is shared, so
nothing is branched off; with one that is constant, or constant until its decay, the number of
epochs is.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from autoglm.contracts.stage_chain import StageChain
from autoglm.errors import AutoGLMError
from autoglm.search.space import Dimension
from autoglm.search.standing import Standing, winner_of

BRANCH_OF = "branch_of"
# One proposal of so many.
EVERY = 2
# Trials, the best first, that are looked at for something to branch off.
MOST_ORIGINS = 3
# Values of a dimension that plans are asked for.
MOST_VALUES = 8
Plan = Callable[[Mapping[str, Any]], StageChain]
Point = dict[str, Any]


class Branches:
    """`is_allowed` says whether a point keeps the constraints of the space."""

    def __init__(
        self, dimensions: Sequence[Dimension], plan: Plan, is_allowed: Callable[[Point], bool]
    ) -> None:
        self._dimensions, self._plan, self._is_allowed = dimensions, plan, is_allowed
        self._late: dict[int, tuple[str, ...]] = {}

    def next(self, standings: Sequence[Standing]) -> tuple[int, Point] | None:
        """The trial to branch off and, as Optuna takes it, the whole point, which nobody has tried:
        the sampler would ask for the best one again. None where it is not a branch's turn, or none
        is left. Of equal standings it gives the same.
        """
        complete = [each for each in standings if each.state == "complete"]
        tried = [each.params for each in standings]
        for _ in range(MOST_ORIGINS if len(standings) % EVERY == 0 else 0):
            if (best := winner_of(complete)) is None:
                break
            for point in self._begins_alike(best):
                if point not in tried and self._is_allowed(point):
                    told = {d.key: d.told(point[d.key]) for d in self._dimensions if d.key in point}
                    return best.number, told
            complete.remove(best)
        return None

    def _begins_alike(self, origin: Standing) -> Iterator[Point]:
        if origin.number not in self._late:
            self._late[origin.number] = tuple(self._late_keys(origin.params))
        for key in self._late[origin.number]:
            yield from self._others(origin.params, key)

    def _late_keys(self, params: Mapping[str, Any]) -> Iterator[str]:
        first = self._first_stage(params)
        for dimension in self._dimensions if first else ():
            others = map(self._first_stage, self._others(params, dimension.key))
            if any(other == first for other in others):
                yield dimension.key

    def _others(self, params: Mapping[str, Any], key: str) -> list[Point]:
        """The point with the other values of `key` where these can be counted, the nearest first:
        of the number of epochs, the next larger one before the next smaller one.
        """
        dimension = next(d for d in self._dimensions if d.key == key)
        points = dimension.points() if key in params else None
        if points is None or len(points) > MOST_VALUES or params[key] not in points:
            return []
        here = points.index(params[key])
        order = sorted(range(len(points)), key=lambda i: (abs(i - here), i < here))
        return [{**params, key: points[i]} for i in order if i != here]

    def _first_stage(self, params: Mapping[str, Any]) -> str:
        """Its name; empty for a point that cannot be trained."""
        try:
            return self._plan(params).stages[0].key
        except AutoGLMError as error:
            if error.retryable:
                raise
            return ""
