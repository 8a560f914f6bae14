from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

TriggerKind = Literal["cron", "data_changed", "manual", "command"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TriggerEvent:
    """Somebody or something asks for a run. Equal `cause` means the same request: one run."""

    project: str
    trigger: TriggerKind
    cause: str
    reason: str
    requested_at: datetime
    traceparent: str
    overrides: Mapping[str, Any]
    priority: int = 0
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What admission said: `admitted` made a run, `known` found the run of this cause."""

    project: str
    outcome: Literal["admitted", "known", "unchanged", "waiting"]
    run_id: str
    cause: str
    reason: str
