from __future__ import annotations

from datetime import UTC, datetime

import pytest

from autoglm.errors import ConfigError
from autoglm.triggers.cron import missed_tick, next_tick


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_line_is_read_in_its_zone_also_over_the_change_of_the_clocks() -> None:
    # Berlin is two hours ahead of UTC in summer, one in winter; clocks go back on 25 October.
    assert next_tick("0 3 * * *", "Europe/Berlin", at("2026-10-24T00:00")) == at("2026-10-24T01:00")
    assert next_tick("0 3 * * *", "Europe/Berlin", at("2026-10-25T03:00")) == at("2026-10-26T02:00")


def test_several_missed_ticks_are_made_up_for_by_the_newest() -> None:
    seen, now = at("2026-01-01T00:30"), at("2026-01-01T05:10")
    assert missed_tick("0 * * * *", "UTC", seen, now) == at("2026-01-01T05:00")
    assert missed_tick("0 * * * *", "UTC", at("2026-01-01T05:00"), now) is None


@pytest.mark.parametrize(("line", "zone"), [("61 * * * *", "UTC"), ("* * * * *", "Mars/Base")])
def test_a_bad_line_or_zone_is_refused(line: str, zone: str) -> None:
    with pytest.raises(ConfigError, match=r"trigger\.cron"):
        next_tick(line, zone, at("2026-01-01T00:00"))
