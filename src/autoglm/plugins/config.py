from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from autoglm.config.schema import Key, live


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginsConfig:
    allow: Annotated[
        tuple[str, ...],
        Key("Other people's parts that may be used, `kind:name` or a distribution. Empty: all."),
    ] = ()
    steps: Annotated[
        Mapping[str, Any],
        live("After which step of a run which `step` plugins are executed: `{evaluate: [name]}`."),
    ] = field(default_factory=dict)
