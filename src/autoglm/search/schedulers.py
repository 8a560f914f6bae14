"""Which trials are trained on: each is judged at rungs, the ends of some of its stages (epochs).

none       every trial is trained to its end
median     a trial below the median of the others at the same stage is stopped
asha       a trial pauses at each rung; the best 1 / reduction_factor of a rung are resumed
hyperband  asha in brackets that begin at later and later rungs

A decision is a function of what the journal holds: after a kill it is the same.
Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020, arXiv:1810.05934
(asha); Li et al., "Hyperband", 2018, arXiv:1603.06560; Golovin et al., "Google Vizier", 2017
(median).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from autoglm.contracts.record import digest
from autoglm.search.config import SearchConfig
from autoglm.search.standing import Standing

Verdict = Literal["go_on", "pause", "stop"]
# Before so many trials have been at a stage, its median says nothing.
MEDIAN_TRIALS = 4


class Scheduler(Protocol):
    pauses: ClassVar[bool]

    def rungs(self, number: int, num_stages: int) -> tuple[int, ...]:
        """The stages at whose end trial `number` is judged; the last is its end."""
        ...

    def verdict(self, mine: Standing, others: Sequence[Standing]) -> Verdict:
        """Of a trial that has reached a rung which is not its last."""
        ...

    def promoted(self, standings: Sequence[Standing]) -> Standing | None:
        """The paused trial that is to be resumed now."""
        ...


class ToTheEnd:
    pauses: ClassVar[bool] = False

    def rungs(self, number: int, num_stages: int) -> tuple[int, ...]:
        return (num_stages,)

    def verdict(self, mine: Standing, others: Sequence[Standing]) -> Verdict:
        return "go_on"

    def promoted(self, standings: Sequence[Standing]) -> Standing | None:
        return None


@dataclass(frozen=True, slots=True)
class Median(ToTheEnd):
    min_stages: int

    def rungs(self, number: int, num_stages: int) -> tuple[int, ...]:
        return tuple(range(min(self.min_stages, num_stages), num_stages + 1))

    def verdict(self, mine: Standing, others: Sequence[Standing]) -> Verdict:
        there = [each.scores[mine.reached] for each in others if mine.reached in each.scores]
        if len(there) < MEDIAN_TRIALS:
            return "go_on"
        best = max(mine.scores.values())
        return "stop" if best < statistics.median(there) else "go_on"


@dataclass(frozen=True, slots=True)
class Asha:
    """With `seed` the trials are dealt into Hyperband's brackets: bracket b begins b rungs later,
    and gets as many of the trials as equal compute for each bracket buys.
    """

    pauses: ClassVar[bool] = True

    reduction_factor: int
    min_stages: int
    seed: int | None = None

    def rungs(self, number: int, num_stages: int) -> tuple[int, ...]:
        stages = self._stages(num_stages)
        return (*stages[self._bracket(number, len(stages)) :], num_stages)

    def verdict(self, mine: Standing, others: Sequence[Standing]) -> Verdict:
        return "pause"

    def promoted(self, standings: Sequence[Standing]) -> Standing | None:
        """The best of the highest rung that has one among its top 1 / reduction_factor."""
        rungs = sorted({stage for each in standings for stage in each.scores}, reverse=True)
        for rung in rungs:
            groups: dict[int, list[Standing]] = {}
            for each in standings:
                if rung in each.scores:
                    groups.setdefault(min(each.scores), []).append(each)
            for _first, there in sorted(groups.items()):
                ranked = sorted(there, key=lambda s: (-s.scores[rung], s.number))
                top = ranked[: len(ranked) // self.reduction_factor]
                ready = [s for s in top if s.state == "paused" and s.reached == rung]
                if ready:
                    return ready[0]
        return None

    def _stages(self, num_stages: int) -> list[int]:
        stages, stage = [], self.min_stages
        while stage < num_stages:
            stages.append(stage)
            stage *= self.reduction_factor
        return stages

    def _bracket(self, number: int, num_rungs: int) -> int:
        if self.seed is None:
            return 0
        # With s rungs left to be halved at, a trial costs less, and more of them cost the same.
        shares = [
            math.ceil((num_rungs + 1) * self.reduction_factor**s / (s + 1))
            for s in range(num_rungs, -1, -1)
        ]
        dealt = int(digest(self.seed, "bracket", number)[:8], 16) % sum(shares)
        for bracket, share in enumerate(shares):
            if dealt < share:
                return bracket
            dealt -= share
        raise AssertionError("dealt is below the sum")


def make_scheduler(config: SearchConfig, seed: int) -> Scheduler:
    if config.scheduler == "median":
        return Median(config.min_epochs)
    if config.scheduler in {"asha", "hyperband"}:
        return Asha(
            config.reduction_factor,
            config.min_epochs,
            seed if config.scheduler == "hyperband" else None,
        )
    return ToTheEnd()
