"""What a plugin is given when it is executed, and the general form of a plugin."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

API_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """`workspace` is the run's own folder. `cancel` is set when the run was asked to stop.

    `ext` is reserved: later versions put there what has no field yet, so that the constructor's
    signature never changes under a plugin.
    """

    project: str
    run_id: str
    traceparent: str
    params: Mapping[str, Any]
    workspace: Path
    logger: Any = field(default_factory=lambda: logging.getLogger("autoglm.plugin"))
    tracer: Any = None
    cancel: threading.Event = field(default_factory=threading.Event)
    ext: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@runtime_checkable
class Plugin(Protocol):
    """The general form: a step of a run. `execute` may be called again after a crash.

    Returns a JSON-able document that is recorded with the run. Raises: PluginError.
    """

    name: str
    kind: str
    api_version: int

    def execute(self, context: Context) -> Any: ...
