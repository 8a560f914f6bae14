from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Verdict = Literal["Successful", "Failed", "Inconclusive", "Error"]
CandidateKind = Literal["quality", "performance"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """The process that gives a candidate its traffic. `stable` is `""` for a first release.

    `weight` is the candidate's absolute traffic weight in per cent; `verdict` is None while the
    rollout goes on.
    """

    project: str
    rollout_id: str
    run_id: str
    candidate: str
    stable: str
    kind: CandidateKind
    steps: tuple[int, ...]
    step: int
    weight: int
    verdict: Verdict | None
    reason: str
    is_paused: bool
    is_replayed: bool
    started_at: datetime
    traceparent: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteTable:
    """What the gateway applies: absolute weights under a generation number that only grows.

    Weights are per cent by model digest and sum to 100; `folders` says where each model lies;
    `salt` keeps a key on its side while the weight grows.
    """

    project: str
    generation: int
    stable: str
    candidate: str
    candidate_weight: int
    folders: dict[str, str]
    traces: dict[str, str]
    salt: str
