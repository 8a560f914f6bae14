"""Proposals that go on from what is stored: a good trial's first stages stay, the sampler is asked
for the settings that only its later stages feel.

Which these are is not known by name: the plan of a point with another value says whether it begins
with the same stages. (With a rate that falls to 0 at the end nothing is shared, so nothing is
branched off; with one that is constant, or constant until its decay, the number of epochs is.)
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
# Values of a dimension that plans are asked for.
MOST_VALUES = 8
Plan = Callable[[Mapping[str, Any]], StageChain]


class Branches:
    def __init__(self, dimensions: Sequence[Dimension], plan: Plan) -> None:
        self._dimensions, self._plan = dimensions, plan
        self._late: dict[int, set[str]] = {}

    def next(self, standings: Sequence[Standing]) -> tuple[int, dict[str, Any]] | None:
        """The trial to branch off and, as Optuna takes it, what stays of it; None where it is not a
        branch's turn, or none is left. Of equal standings it gives the same.
        """
        best = winner_of([each for each in standings if each.state == "complete"])
        if best is None or len(standings) % EVERY:
            return None
        if best.number not in self._late:
            self._late[best.number] = set(self._late_keys(best.params))
        late = self._late[best.number]
        tried = [each.params for each in standings]
        if not any(point not in tried for key in late for point in self._others(best.params, key)):
            return None
        kept = [d for d in self._dimensions if d.key in best.params and d.key not in late]
        return best.number, {d.key: d.told(best.params[d.key]) for d in kept}

    def _late_keys(self, params: Mapping[str, Any]) -> Iterator[str]:
        try:
            first = self._plan(params).stages[0].key
        except AutoGLMError:
            return
        for dimension in self._dimensions:
            if any(self._begins_with(first, p) for p in self._others(params, dimension.key)):
                yield dimension.key

    def _others(self, params: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        """The point with the other values of `key`, where these can be counted."""
        dimension = next(d for d in self._dimensions if d.key == key)
        points = dimension.points() if key in params else None
        if points is None or len(points) > MOST_VALUES:
            return []
        return [{**params, key: value} for value in points if value != params[key]]

    def _begins_with(self, first: str, params: Mapping[str, Any]) -> bool:
        try:
            chain = self._plan(params)
        except AutoGLMError:
            return False
        return chain.stages[0].key == first
