"""W3C trace context without needing an SDK: a trace id is never empty."""

from __future__ import annotations

import secrets


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
