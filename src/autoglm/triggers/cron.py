"""Five-field cron lines in a time zone."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from autoglm.errors import ConfigError


def next_tick(line: str, zone: str, after: datetime) -> datetime:
    """First tick strictly after `after` (aware), in UTC. Raises: ConfigError for a bad line."""
    from croniter import CroniterError, croniter

    try:
        local = after.astimezone(ZoneInfo(zone))
        tick: datetime = croniter(line, local).get_next(datetime)
    except (CroniterError, ValueError, KeyError, OSError) as error:
        raise ConfigError(
            f"trigger.cron = {line!r} in {zone!r}: {error}.",
            code="config.wrong_value",
            next_step="Five fields and a zone of the IANA list: '0 0 * * *' in Europe/Berlin.",
        ) from error
    return tick.astimezone(UTC)


def missed_tick(line: str, zone: str, last_seen: datetime, now: datetime) -> datetime | None:
    """The newest tick in (last_seen, now]: several missed ones are made up for by one run."""
    newest = None
    tick = next_tick(line, zone, last_seen)
    while tick <= now:
        newest, tick = tick, next_tick(line, zone, tick)
    return newest
