"""Numbers with units: `200ms`, `10min`, `4GiB`, `5%`."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

_SECONDS = {
    "us": 1e-6, "ms": 1e-3, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600,
    "d": 86_400, "day": 86_400,
}  # fmt: skip
_BYTES = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_MOST_BYTES = 10**24
_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"


_PARTS = re.compile(rf"(?:{_NUMBER}\s*[a-z]+\s*)+")


def duration(value: Any) -> timedelta:
    """`1h30m` → timedelta; a bare number counts seconds. Raises: ValueError."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("write a duration like 200ms, 10min or 1h30m")
    if not isinstance(value, str):
        return _time(value)
    text = value.strip()
    if re.fullmatch(_NUMBER, text):
        return _time(float(text))
    parts = re.findall(rf"({_NUMBER})\s*([a-z]+)", text)
    units = [unit.rstrip("s") if unit not in _SECONDS else unit for _, unit in parts]
    if not _PARTS.fullmatch(text) or any(unit not in _SECONDS for unit in units):
        raise ValueError("write a duration like 200ms, 10min or 1h30m")
    return _time(sum(float(n) * _SECONDS[unit] for (n, _), unit in zip(parts, units, strict=True)))


def _time(seconds: float) -> timedelta:
    try:
        found = timedelta(seconds=seconds)
    except (OverflowError, ValueError) as error:
        raise ValueError("a duration is a finite time of at most 999999999 days") from error
    if seconds < 0:
        raise ValueError("a duration cannot be negative")
    return found


def num_bytes(value: Any) -> int:
    """`4GiB` → 4294967296; a bare number counts bytes. Raises: ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(rf"({_NUMBER})\s*([a-zA-Z]*)", str(value).strip())
    if match is None or match[2].lower() not in _BYTES:
        raise ValueError("write a size like 500MB or 4GiB")
    size = Decimal(match[1]) * _BYTES[match[2].lower()]
    # A float would round beyond 2**53; a size that nobody has would take minutes to write out.
    if size != size.to_integral_value() or size >= _MOST_BYTES:
        raise ValueError(f"a size is a whole number of bytes below {_MOST_BYTES:.0e}")
    return int(size)


def share(value: Any) -> float:
    """`5%` → 0.05; a bare number is a share of one. Raises: ValueError."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match = re.fullmatch(rf"({_NUMBER})\s*(%?)", str(value).strip())
    if not is_number and match is None:
        raise ValueError("write a share like 0.05 or 5%")
    number = value if is_number else float(match[1]) / (100 if match[2] else 1)  # type: ignore[index]
    if not 0 <= number <= 1:
        raise ValueError("a share lies between 0 and 1 (0% and 100%)")
    return float(number)
