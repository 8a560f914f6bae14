from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from annotated_types import Ge

from autoglm.config.schema import Key


@dataclass(frozen=True, kw_only=True, slots=True)
class TriggerConfig:
    cron: Annotated[str, Key("Five-field cron line; empty: no cron.")] = ""
    time_zone: Annotated[str, Key("IANA zone the cron line is read in.")] = "UTC"
    data_changed: Annotated[bool, Key("Run when the feature table has a new dataset version.")] = (
        True
    )
    debounce: Annotated[timedelta, Key("Quiet time after the last change before a run.")] = (
        timedelta(seconds=10)
    )
    min_rows: Annotated[int, Ge(1), Key("Changed usable rows that are worth a run.")] = 1
    manual_invoke: Annotated[str, Key("Path of the manual trigger.")] = "/api/v1/trigger/train"
