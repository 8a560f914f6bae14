from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One answer as it was given, `label` as JSON has it (contracts.task). Keeps the text's digest
    only: what users send is not ours.
    """

    project: str
    request_id: str
    model_version: str
    label: Any
    score: float | None
    status: int
    latency_ms: float
    text_digest: str
    is_replayed: bool
    is_retried: bool
    trace_id: str
    model_trace_id: str
    answered_at: datetime
