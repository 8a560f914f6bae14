"""How a record becomes JSON and comes back: names as they stand, times as ISO 8601, no pickle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any, TypeVar

from autoglm.contracts.record_schema import UnknownTypeError, validator_of

T = TypeVar("T")
_building = threading.RLock()


def to_json(record: Any) -> Any:
    """Plain JSON value of a record (or of a container of records); tuples become lists.

    A secret of pydantic's comes out in the clear: `settings.freeze` is what may lie on a disk.
    """
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(k): to_json(v) for k, v in record.items()}
    if isinstance(record, (list, tuple, set, frozenset)):
        return [to_json(v) for v in record]
    if isinstance(record, datetime):
        return record.isoformat()
    if isinstance(record, timedelta):
        return record.total_seconds()
    if hasattr(record, "get_secret_value"):  # pydantic's SecretStr, in a plugin's section
        return to_json(record.get_secret_value())
    return record.decode("utf-8", "surrogateescape") if isinstance(record, bytes) else record


def from_json(kind: type[T], value: Any) -> T:
    """Validate `value` (as `to_json` wrote it) into `kind`. Raises: pydantic.ValidationError."""
    validator = _validator(kind)  # type: ignore[arg-type]
    record: T = validator.validate_python(value)
    return record


@cache
def _validator(kind: Any) -> Any:
    """The plain types of our own records need the core alone; what a plugin's section may have
    beside them is pydantic's to read.
    """
    with contextlib.suppress(UnknownTypeError):
        return validator_of(kind)
    from pydantic import TypeAdapter

    with _without_plugins():
        return TypeAdapter(kind)


@contextlib.contextmanager
def _without_plugins() -> Iterator[None]:
    """Pydantic looks through every installed package for plugins of its own, 15 ms at each start,
    unless it is told not to; whoever uses them elsewhere keeps them.
    """
    name = "PYDANTIC_DISABLE_PLUGINS"
    with _building:
        before = os.environ.get(name)
        os.environ[name] = "__all__"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def canonical(value: Any) -> bytes:
    """The one byte form that digests are taken of: sorted keys, no spaces, UTF-8."""
    text = json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def digest(*parts: Any, size: int = 16) -> str:
    """Hex BLAKE2b of the parts' canonical JSON; `size` bytes, so twice as many characters."""
    import hashlib  # opens OpenSSL, which reading a configuration does not need

    hasher = hashlib.blake2b(digest_size=size)
    for part in parts:
        data = canonical(part)
        hasher.update(len(data).to_bytes(8, "big"))
        hasher.update(data)
    return hasher.hexdigest()
