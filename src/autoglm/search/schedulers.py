"""Which trials are trained on: each is judged at rungs, the ends of some of its stages (epochs).

none       every trial is trained to its end
median     a trial below the median of the others at the same share of their schedules is stopped
asha       a trial pauses at each rung; the best 1 / reduction_factor of a rung are resumed
hyperband  asha in brackets that begin at later and later rungs

A rung is a share of a trial's own schedule: at the end of its only epoch one has come to rest,
which says nothing of another whose rate has only begun to fall, at the end of its first of nine.

A decision is a function of what the journal holds: after a kill it is the same.
Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020, arXiv:1810.05934
(asha); Li et al., "Hyperband", 2018, arXiv:1603.06560; Golovin et al., "Google Vizier", 2017
(median).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal, Protocol

from autoglm.contracts.record import digest
from autoglm.search.config import SearchConfig
from autoglm.search.standing import Standing

Verdict = Literal["go_on", "pause", "stop"]
# Before so many trials have been there, their median says nothing.
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
        there = [
            score
            for each in others
            for stage, score in each.scores.items()
            if stage * mine.num_stages == mine.reached * each.num_stages
        ]
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
        stages = [stage for stage in self._levels(num_stages) if stage < num_stages]
        return (*stages[self._bracket(number, len(stages)) :], num_stages)

    def verdict(self, mine: Standing, others: Sequence[Standing]) -> Verdict:
        return "pause"

    def promoted(self, standings: Sequence[Standing]) -> Standing | None:
        """The best of the highest rung that has one among its top 1 / reduction_factor."""
        rungs: dict[int, dict[int, list[tuple[float, Standing]]]] = {}
        for each in standings:
            there = {s: n for s, n in self._levels(each.num_stages).items() if s in each.scores}
            for stage, level in there.items():
                # Brackets are kept apart: by the rung at which a trial began.
                bracket = 0 if self.seed is None else max(there.values())
                group = rungs.setdefault(level, {}).setdefault(bracket, [])
                group.append((each.scores[stage], each))
        for level, groups in sorted(rungs.items()):
            for _first, group in sorted(groups.items(), reverse=True):
                ranked = sorted(group, key=lambda scored: (-scored[0], scored[1].number))
                for _score, each in ranked[: len(ranked) // self.reduction_factor]:
                    if each.state == "paused" and self._level(each) == level:
                        return each
        return None

    def _level(self, each: Standing) -> int | None:
        return self._levels(each.num_stages).get(each.reached)

    def _levels(self, num_stages: int) -> Mapping[int, int]:
        return _rungs_of(num_stages, self.reduction_factor, self.min_stages)

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


@cache
def _rungs_of(num_stages: int, reduction_factor: int, min_stages: int) -> Mapping[int, int]:
    """Stage → rung of a trial of so many stages, in their order. Rung 0 is the end, rung
    k the stage nearest to the share 1 / reduction_factor ** k of them.
    """
    found, rung, stage = {num_stages: 0}, 0, num_stages
    while stage > min_stages:
        rung += 1
        stage = math.floor(num_stages / reduction_factor**rung + 0.5)
        if stage < min_stages:
            break
        found.setdefault(stage, rung)
    return dict(sorted(found.items()))


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
