from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated

from annotated_types import Ge, Len

from autoglm.config.schema import Share, live

FULL_WEIGHT = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseConfig:
    steps: Annotated[
        tuple[int, ...], Len(1), live("Traffic weights of the candidate, per cent.")
    ] = field(default=(5, 25, 50, 100))
    min_requests: Annotated[
        int, Ge(1), live("Requests per release step and version before it is judged.")
    ] = 50
    pause_above_mean_latency: Annotated[
        timedelta, live("Mean latency of either version that freezes the weights.")
    ] = timedelta(milliseconds=200)
    max_error_rate: Annotated[
        Share, Ge(0), live("Candidate errors above stable's that fail the rollout.")
    ] = 0.01
    step_deadline: Annotated[
        timedelta, live("A release step without enough requests by then is Inconclusive.")
    ] = timedelta(minutes=30)
    replay: Annotated[
        bool, live("`autoglm run` replays held-out rows when there is no traffic.")
    ] = True
    replay_clients: Annotated[int, Ge(1), live("Concurrent clients of the replay.")] = 2

    def __post_init__(self) -> None:
        steps = self.steps
        is_rising = all(a < b for a, b in zip(steps, steps[1:], strict=False))
        if not is_rising or steps[0] < 1 or steps[-1] != FULL_WEIGHT:
            raise ValueError("weights rise from 1 or more and end at 100")
