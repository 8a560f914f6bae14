"""JSON logs {timestamp, level, service, project, trace_id, message, …}, one file per service.

Library records (`logging`) go through the same formatter, so they carry the trace id too. On a
terminal nothing is printed here: the command line shows progress, the files keep the story.
"""

from __future__ import annotations

import contextvars
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import structlog

from autoglm.observability.tracing import trace_id_of

_trace: contextvars.ContextVar[str] = contextvars.ContextVar("autoglm_trace", default="")
_SECRET = re.compile(r"(://[^/\s:@]*):[^@\s/]+@")


def get_logger(**bound: Any) -> Any:
    return structlog.stdlib.get_logger().bind(**bound)


def set_trace(traceparent: str) -> None:
    """Every later line of this context (thread or task) carries this trace id."""
    _trace.set(trace_id_of(traceparent))


def configure(service: str, *, project: str, folder: Path | None, level: str = "INFO") -> None:
    """Write this process's lines to `folder/SERVICE.jsonl` (standard error when None)."""

    def stamp(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        event.setdefault("trace_id", _trace.get())
        event["service"], event["project"] = service, project
        event["message"] = _SECRET.sub(r"\1:***@", str(event.pop("event", "")))
        return event

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler: logging.Handler
    if folder is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder / f"{service}.jsonl", encoding="utf-8")
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                stamp,
                structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
            ],
        )
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request is no news
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)
