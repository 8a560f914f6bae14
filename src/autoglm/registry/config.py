from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from autoglm.config.schema import Bytes, live


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageConfig:
    budget: Annotated[Bytes, Ge(0), live("A run that would pass this on disk is refused.")] = (
        20 * 2**30
    )
    keep_versions: Annotated[
        int, Ge(1), live("Model versions kept beside those with an alias.")
    ] = 5
