"""W3C trace context without needing an SDK: a trace id is never empty."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator


def new_traceparent(trace_id: str | None = None) -> str:
    """`00-<32 hex>-<16 hex>-01`: a new span, in `trace_id` if given, else in a new trace."""
    return f"00-{trace_id or secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def trace_id_of(traceparent: str) -> str:
    """The 32 hex digits, or `""` when `traceparent` is not one."""
    parts = traceparent.split("-")
    is_valid = len(parts) >= 4 and len(parts[1]) == 32 and set(parts[1]) <= set("0123456789abcdef")
    return parts[1] if is_valid and set(parts[1]) != {"0"} else ""


def child_of(traceparent: str) -> str:
    """A new span in the same trace (in a new one if `traceparent` is not valid)."""
    return new_traceparent(trace_id_of(traceparent) or None)


class Tracer:
    """Spans below one parent, written as log lines with their seconds."""

    def __init__(self, traceparent: str) -> None:
        self._traceparent = traceparent

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[str]:
        """A span around a block; gives its traceparent, to be handed on."""
        from autoglm.observability.logging import get_logger  # which imports this file

        here, started = child_of(self._traceparent), time.monotonic()
        try:
            yield here
        finally:
            seconds = round(time.monotonic() - started, 6)
            get_logger(trace_id=trace_id_of(here)).info("span", span=name, seconds=seconds)
