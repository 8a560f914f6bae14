"""A trial that misses a constraint of evaluate.metrics is picked only where all do."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoglm.clock import SteeredClock
from autoglm.contracts.stage_chain import Progress, Stage, StageChain
from autoglm.loop.run_to_candidate import constraints_hold
from autoglm.search.config import SearchConfig
from autoglm.search.space import read_space
from autoglm.search.study import Study
from autoglm.state.engine import open_state
from autoglm.state.event_log import EventLog


class Table:
    """A runner whose trials are worth what a table says."""

    def __init__(self, rows: dict[int, dict[str, float]]) -> None:
        self.rows = rows

    def plan(self, params: Any) -> StageChain:
        stage = Stage(
            key=str(params), parent="", settings=params, num_steps=1, seed=0, data_order=""
        )
        return StageChain(project="p", params=params, stages=(stage,))

    def cost(self, chain: StageChain) -> Any:
        return SimpleNamespace(cpu_seconds=0.0, disk_bytes=0, num_steps=1)

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        return Progress(
            key=chain.key, step=1, num_steps=1, metrics=self.rows[chain.params["training.epochs"]],
            cpu_seconds=1.0, reused_steps=0, folder="",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("roles", "wanted"),
    [
        ({}, 4),
        ({"recall": "report"}, 1),
        ({"recall": {"at_least": 0.5}}, 2),
        ({"recall": {"at_least": 0.5}, "mistakes": {"at_most": 10}}, 3),
        ({"recall": {"at_least": 0.99}}, 1),
        ({"size_bytes": {"at_most": 1}}, 1),
    ],
)
def test_the_best_of_those_that_keep_the_constraints_is_picked(
    tmp_path: Path, roles: dict[str, Any], wanted: int
) -> None:
    nan = float("nan")
    runner = Table(
        {
            1: {"accuracy": 0.9, "recall": 0.2, "mistakes": 0},
            2: {"accuracy": 0.8, "recall": 0.6, "mistakes": 20},
            3: {"accuracy": 0.7, "recall": 0.8, "mistakes": 5},
            4: {"accuracy": 0.95 if not roles else 0.1, "recall": nan, "mistakes": nan},
        }
    )
    space = {"epochs": {"choice": [1, 2, 3, 4]}}
    settings: Any = SimpleNamespace(evaluate=SimpleNamespace(metrics=roles))
    result = Study(
        project="p", name="run-1", config=SearchConfig(space=space, trials=4, sampler="random"),
        dimensions=read_space(space, ["training.epochs"]), defaults={}, metric="accuracy", seed=1,
        runners=[runner], log=EventLog(open_state(tmp_path / "state.db")), clock=SteeredClock(),
        on_event=lambda _event: None, fulfils=constraints_hold(settings),
    ).run(threading.Event())  # fmt: skip
    assert len(result.trials) == 4
    assert result.best.params == {"training.epochs": wanted}
