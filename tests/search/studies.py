"""Studies over the runner that computes, with what most tests of them do not care about filled in."""

from __future__ import annotations

import threading
from typing import Any

from autoglm.clock import SteeredClock
from autoglm.contracts.trial import StudyResult
from autoglm.search.config import SearchConfig
from autoglm.search.space import read_space
from autoglm.search.study import Study
from autoglm.state.event_log import EventLog
from search.numeric_runner import KEYS

LR = {"lr": {"uniform": [0.0, 1.0]}}
USUAL: dict[str, Any] = {
    "metric": "accuracy", "defaults": {}, "on_event": lambda _event: None,
}  # fmt: skip
NAMED = (*USUAL, "maximize", "clock", "bounds", "constraints", "start")


def run(log: EventLog, *runners: Any, name: str = "run-1", **config: Any) -> StudyResult:
    return opened(log, *runners, name=name, **config).run(threading.Event())


def opened(log: EventLog, runner: Any, *more: Any, name: str = "run-1", **config: Any) -> Study:
    """With `more` runners it is a study of several workers."""
    space = config.setdefault("space", LR)
    named = {key: config.pop(key) for key in NAMED if key in config}
    objectives = config.pop("sought", ())
    keys, refresh = config.pop("keys", KEYS), config.pop("refresh_by", None)
    return Study(
        project="p", name=name, config=SearchConfig(**config), seed=1,
        dimensions=read_space(space, keys), objectives=objectives, runners=[runner, *more], log=log,
        refresh=refresh, **{**USUAL, "clock": SteeredClock(), **named},
    )  # fmt: skip
