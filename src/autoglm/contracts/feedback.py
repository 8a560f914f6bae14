from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """The true answer (as JSON has it) of an answered request, whenever it becomes known."""

    project: str
    request_id: str
    label: Any
    received_at: datetime
