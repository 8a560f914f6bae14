from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """The true label of an answered request, whenever it becomes known."""

    project: str
    request_id: str
    label: str
    received_at: datetime
