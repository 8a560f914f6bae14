"""The runners of a study. Each trains one trial at a time; where there is one, it trains in the
thread of the loop, in the order of the loop.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from autoglm.contracts.stage_chain import Progress
from autoglm.plugins.kinds import TrialRunner
from autoglm.search.standing import Standing

Outcome = Callable[[], Progress]


class AtWork(NamedTuple):
    """A trial as it was when a runner began to train it to the end of `stage`."""

    standing: Standing
    stage: int
    started: float


class Crew:
    """Only the thread of the loop calls it. `next` may be asked for plans: it is idle."""

    def __init__(self, runners: Sequence[TrialRunner]) -> None:
        self._idle = deque(runners)
        self._busy: dict[int, TrialRunner] = {}
        self._ended: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
        self._threads = (
            ThreadPoolExecutor(len(runners), "trial") if len(self._idle) > 1 else None
        )  # fmt: skip
        self.size = len(runners)

    @property
    def next(self) -> TrialRunner:
        return self._idle[0]

    @property
    def is_full(self) -> bool:
        """Whether every runner trains."""
        return not self._idle

    @property
    def numbers(self) -> frozenset[int]:
        """The trials that are being trained."""
        return frozenset(self._busy)

    def begin(self, number: int, work: Callable[[TrialRunner], Progress]) -> None:
        """Let the next runner do `work` for trial `number`."""
        runner = self._busy[number] = self._idle.popleft()
        if self._threads is None:
            self._ended.put((number, partial(work, runner)))
            return
        future = self._threads.submit(work, runner)
        future.add_done_callback(lambda done: self._ended.put((number, done.result)))

    def wait(self) -> tuple[int, Outcome]:
        """The next trial whose work is done; its outcome returns or raises what the work did."""
        number, outcome = self._ended.get()
        self._idle.append(self._busy.pop(number))
        return number, outcome

    def leave(self) -> None:
        """Wait until nobody works any more; what they did is not told."""
        if self._threads is not None:
            self._threads.shutdown()
