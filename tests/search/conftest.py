"""A study's event log, and trials that are numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoglm.state.engine import open_state
from autoglm.state.event_log import EventLog
from search.numeric_runner import NumericRunner


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(open_state(tmp_path / "state.db"))


@pytest.fixture
def runner(tmp_path: Path) -> NumericRunner:
    return NumericRunner(tmp_path / "stages")
