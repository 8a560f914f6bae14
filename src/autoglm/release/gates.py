"""Gates under traffic: a block in, a judgement out. No data is never pass and never fail."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from autoglm.contracts.measurement import Block, VersionWindow
from autoglm.release.config import ReleaseConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """`pause` freezes the weights; `wait` asks for more requests."""

    action: Literal["advance", "wait", "pause", "fail"]
    reason: str


def judge(block: Block, config: ReleaseConfig, *, weight: int) -> Judgement:
    """Judge one release step at traffic weight `weight` (per cent) from its block so far."""
    candidate, stable = block.candidate, block.stable
    # At 100 % nobody asks stable any more.
    needed = [candidate] if weight == 100 else [candidate, stable]
    enough = [w is not None and w.requests >= config.min_requests for w in needed]
    if candidate is not None and candidate.requests >= config.min_requests:
        excess = _error_rate(candidate) - (_error_rate(stable) if stable else 0.0)
        if excess > config.max_error_rate:
            return Judgement(action="fail", reason=f"error rate {excess:+.1%} against stable")
    limit = config.pause_above_mean_latency.total_seconds() * 1000
    for name, window in (("candidate", candidate), ("stable", stable)):
        mean = window.mean_latency_ms if window else None
        is_seen = window is not None and window.requests >= min(10, config.min_requests)
        if is_seen and mean is not None and math.isfinite(mean) and mean > limit:
            return Judgement(
                action="pause", reason=f"mean latency of {name} {mean:.0f} ms > {limit:.0f} ms"
            )
    if not all(enough):
        counts = [w.requests if w else 0 for w in (candidate, stable)]
        seen = f"{counts[0]} requests to the candidate, {counts[1]} to stable"
        return Judgement(action="wait", reason=f"at {weight} %: {seen}")
    means = [w.mean_latency_ms for w in needed if w is not None]
    if any(mean is None or not math.isfinite(mean) for mean in means):
        return Judgement(action="wait", reason="no latency was measured")
    shown = " / ".join(f"{mean:.0f} ms" for mean in means if mean is not None)
    errors = " / ".join(str(w.errors) for w in needed if w is not None)
    requests = " / ".join(str(w.requests) for w in needed if w is not None)
    who = "candidate" if weight == 100 else "candidate / stable"
    return Judgement(
        action="advance",
        reason=f"at {weight} % held ({who}): {requests} requests, {errors} errors, mean {shown}",
    )


def _error_rate(window: VersionWindow) -> float:
    return window.errors / window.requests if window.requests else 0.0
