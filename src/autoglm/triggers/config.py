from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from annotated_types import Ge

from autoglm.config.schema import live


@dataclass(frozen=True, kw_only=True, slots=True)
class TriggerConfig:
    cron: Annotated[str, live("Five-field cron line; empty: no cron.")] = ""
    time_zone: Annotated[str, live("IANA zone the cron line is read in.")] = "UTC"
    data_changed: Annotated[bool, live("Run when the feature table has a new dataset version.")] = (
        True
    )
    debounce: Annotated[timedelta, live("Quiet time after the last change before a run.")] = (
        timedelta(seconds=10)
    )
    min_rows: Annotated[int, Ge(1), live("Changed usable rows that are worth a run.")] = 1
    manual_invoke: Annotated[str, live("Path of the manual trigger.")] = "/api/v1/trigger/train"
