from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One number for a gate. `value` None is no data: Inconclusive, never pass or fail."""

    project: str
    query: str
    value: float | None
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionWindow:
    """Golden signals of one model version since a release step began (latencies in ms)."""

    version: str
    requests: int
    errors: int
    mean_latency_ms: float | None
    p50_ms: float | None
    p99_ms: float | None
    labelled: int
    correct: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Concurrent windows of both versions, cut by the gateway. `lease_held` marks that a heavy
    body ran beside it.
    """

    project: str
    generation: int
    candidate: VersionWindow | None
    stable: VersionWindow | None
    lease_held: bool
