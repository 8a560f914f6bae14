"""The cursor of a polled table: how it is stored, and that it never runs ahead of the clock.

A row that is stamped in the future (a clock that ran ahead) would carry the cursor past every row
that comes before that moment. Such a row is read; the cursor stays at now, and the row is read
again until its time has come, and told apart by its digest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, func, select

from autoglm.errors import SourceError
from autoglm.streaming.collectors.database import plain

# A time this far ahead of our clock is no time zone (14 hours at most) but a wrong clock.
TOLERANCE = timedelta(days=1)
MAX_ZONE, ZONE_STEP = timedelta(hours=14), timedelta(minutes=15)
# Seconds, milliseconds, microseconds; from 2001 to ten years from now.
UNITS, FIRST_SECOND, YEARS_AHEAD = (1, 10**3, 10**6), 10**9, 10 * 365 * 86_400
NUMBERS = (int, float, Decimal)


@dataclass(frozen=True, kw_only=True, slots=True)
class Now:
    """The moment in UTC, and as the database would write it without a zone; whole seconds."""

    utc: datetime
    local: datetime

    @classmethod
    def at(cls, connection: Connection) -> Now:
        """The earlier one of the database's clock and ours."""
        ours = datetime.now(UTC)
        asked: list[Any] = [func.current_timestamp()]
        if connection.dialect.name in ("mysql", "mariadb"):
            asked.append(func.utc_timestamp())
        said, *in_utc = connection.execute(select(*asked)).one()
        zone: timedelta | None = said.utcoffset()
        if zone is None:
            ahead = said - (in_utc[0] if in_utc else ours.replace(tzinfo=None))
            zone = round(ahead / ZONE_STEP) * ZONE_STEP
            zone = zone if abs(zone) <= MAX_ZONE else timedelta(0)
        utc = min(ours, (said.replace(tzinfo=None) - zone).replace(tzinfo=UTC))
        utc = utc.replace(microsecond=0)
        return cls(utc=utc, local=(utc + zone).replace(tzinfo=None))

    def behind(self, value: Any, unit: int) -> Any:
        """`value`, or now in its form where it is ahead. `unit`: see `unit_of`."""
        now: Any = value
        if isinstance(value, datetime):
            now = self.utc if value.tzinfo else self.local
        elif isinstance(value, date):
            now = self.local.date()
        elif is_time(value):
            now = self._text(value)
        elif unit and isinstance(value, NUMBERS):
            now = type(value)(int(self.utc.timestamp()) * unit)
        return min(value, now)

    def refuses(self, value: Any) -> bool:
        """Whether it is a time more than a day ahead."""
        later = Now(utc=self.utc + TOLERANCE, local=self.local + TOLERANCE)
        is_moment = isinstance(value, datetime) or is_time(value)
        return is_moment and bool(later.behind(value, 0) != value)

    def unit_of(self, number: Any) -> int:
        """Parts of a second that it counts since 1970, 0 for a number that is no time."""
        latest = self.utc.timestamp() + YEARS_AHEAD
        return next((u for u in UNITS if FIRST_SECOND * u <= number <= latest * u), 0)

    def _text(self, value: str) -> str:
        """Not longer than what it is compared with: a beginning is below all that it begins."""
        now = self.utc if value.endswith(("Z", "+00:00", "+00")) else self.local
        text = now.replace(tzinfo=None).isoformat(sep=value[10:11] or " ")
        return text[: len(value)]


def is_time(value: Any) -> bool:
    """SQLite keeps times as text."""
    return (
        isinstance(value, str)
        and value[4:5] == value[7:8] == "-"
        and (value[:4] + value[5:7] + value[8:10]).isdigit()
    )


def stored(value: Any, where: str) -> tuple[Any, str]:
    """As JSON, and its type. Raises: SourceError source.bad_cursor."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex(), "bytes"
    if isinstance(value, datetime):
        return plain(value), "datetime"
    if isinstance(value, date):
        return plain(value), "date"
    is_number = isinstance(value, NUMBERS) and not isinstance(value, bool)
    if not isinstance(value, str) and not (is_number and math.isfinite(value)):
        raise SourceError(
            f"{where} {value!r} cannot be a cursor.",
            code="source.bad_cursor",
            next_step="A cursor is a number, a time or text that grows; correct the row, or leave"
            " data.source.cursor out.",
        )
    return plain(value), "decimal" if isinstance(value, Decimal) else ""


def refuse_mixed(values: Sequence[Any], where: str) -> None:
    """Raises: SourceError source.bad_cursor where they are of several kinds; None is of none."""
    found = {_kind_of(value): value for value in values if value is not None}
    if len(found) > 1:
        shown = ", ".join(f"{kind} ({value!r})" for kind, value in found.items())
        raise SourceError(
            f"{where} has values of several types, which have no order: {shown}.",
            code="source.bad_cursor",
            next_step="Write one type into the column, or leave data.source.cursor out.",
        )


def _kind_of(value: Any) -> str:
    if isinstance(value, NUMBERS):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "a time" if isinstance(value, date) else "bytes"


def restored(value: Any, kind: str) -> Any:
    """As the driver wants to compare it."""
    if kind == "bytes":
        return bytes.fromhex(value)
    if kind == "datetime":
        return datetime.fromisoformat(value)
    if kind == "date":
        return date.fromisoformat(value)
    return Decimal(value) if kind == "decimal" else value


def earlier(value: Any, lag: timedelta, unit: int) -> Any:
    """`value` minus `lag`; what is no time and no number stays."""
    if not lag:
        return value
    if isinstance(value, datetime):
        return value - lag
    if isinstance(value, date):
        return (datetime.combine(value, time()) - lag).date()
    if is_time(value):
        try:
            moment = datetime.fromisoformat(value) - lag
        except ValueError:
            return value
        return moment.isoformat(sep=value[10:11] or "T")[: min(19, len(value))]
    if isinstance(value, NUMBERS):
        number: Any = value
        return number - type(value)(math.ceil(lag.total_seconds() * (unit or 1)))
    return value
