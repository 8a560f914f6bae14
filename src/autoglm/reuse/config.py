from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from autoglm.config.schema import Bytes, live


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    bytes: Annotated[
        Bytes,
        Ge(0),
        live("Most that kept states of frozen layers, and states of paused trials, take on disk."),
    ] = 4 * 2**30
    prefix: Annotated[
        bool, live("Keep what frozen layers say of each row, for trials and later runs.")
    ] = True
    stages: Annotated[
        bool, live("Keep what training is at the end of a stage, so that trials can share it.")
    ] = True
    tokens: Annotated[bool, live("Keep the rows' tokens, for later runs on the same rows.")] = True
    logits: Annotated[
        bool, live("Keep what exported models said of test rows, for runs that score them again.")
    ] = True
