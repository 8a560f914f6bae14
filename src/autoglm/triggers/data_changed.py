"""Notices a new version of the feature table, whoever wrote it, without loading a table engine."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path


def newest_version(table: Path) -> int:
    """Number of the newest Delta commit in the folder, -1 without a table. Costs a listing."""
    log = table / "_delta_log"
    if not log.is_dir():
        return -1
    names = (path.stem for path in log.glob("*.json"))
    return max((int(name) for name in names if name.isdigit()), default=-1)


class Debounce:
    """Says `ready` once the watched version has stood still for `quiet` after a change."""

    def __init__(self, quiet: timedelta, *, seen: int) -> None:
        self.quiet = quiet
        self._handled = seen
        self._last = seen
        self._since: float | None = None

    def ready(self, version: int, now: float) -> bool:
        """`now` is monotonic seconds."""
        if version != self._last:
            self._last, self._since = version, now
        return (
            version > self._handled
            and self._since is not None
            and now - self._since >= self.quiet.total_seconds()
        )

    def handled(self, version: int) -> None:
        self._handled = version
