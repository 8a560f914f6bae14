"""`python killed_study.py FOLDER SCHEDULER SEED KILLS [WORKERS]`: a study in a process that is killed KILLS
times by kill -9, each time at a seeded moment (an optimizer step, before or after a commit), and
started again until it is done. At other moments its training worker dies. Prints what was recorded.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from autoglm.clock import SystemClock
from autoglm.contracts.record import to_json
from autoglm.errors import TrainingError
from autoglm.search.config import SearchConfig
from autoglm.search.journal import OwnedJournal
from autoglm.search.space import read_space
from autoglm.search.study import Study
from autoglm.state.engine import open_state
from autoglm.state.event_log import EventLog
from search.numeric_runner import KEYS, NumericRunner

SPACE = {
    "lr": {"uniform": [0.0, 1.0]},
    "dropout": {"uniform": [0.0, 0.5]},
    "epochs": {"choice": [1, 3, 9]},
}
TRIALS = 24


class Moments:
    """Counts the moments at which something may happen; `die_at` and `kill_at` are two of them."""

    def __init__(self, kill_at: int, die_at: int) -> None:
        self.count, self.kill_at, self.die_at = 0, kill_at, die_at

    def pass_by(self) -> None:
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def step(self) -> None:
        self.pass_by()
        if self.count == self.die_at:
            raise TrainingError("it died.", code="training.worker_died", retryable=True)


FLUSH = OwnedJournal._flush


def journal_with(moments: Moments) -> Callable[[OwnedJournal], None]:
    def flush(self: OwnedJournal) -> None:
        moments.pass_by()
        FLUSH(self)
        moments.pass_by()

    return flush


def run(folder: Path, scheduler: str, moments: Moments, workers: int) -> dict[str, Any]:
    OwnedJournal._flush = journal_with(moments)  # type: ignore[method-assign]
    while True:
        study = Study(
            project="p", name="killed", metric="accuracy", seed=7, defaults={"training.lr": 0.9},
            config=SearchConfig(trials=TRIALS, scheduler=scheduler, budget=timedelta(hours=9)),
            dimensions=read_space(SPACE, KEYS), clock=SystemClock(),
            runners=[NumericRunner(folder / "stages", step=moments.step) for _ in range(workers)],
            log=EventLog(open_state(folder / "state.db")), on_event=lambda _event: None,
        )  # fmt: skip
        try:
            return to_json(study.run(threading.Event()))
        except TrainingError:
            continue  # as the loop does: another worker, the same study


def main(folder: Path, scheduler: str, seed: int, kills: int, workers: int = 1) -> None:
    num_killed = 0
    for attempt in range(20 * kills + 2):
        draw = random.Random(f"{seed} {attempt}")
        span = max(8, 400 // (kills + 1))
        kill_at = draw.randint(1, span) if num_killed < kills else 0
        child = os.fork()
        if child == 0:
            moments = Moments(kill_at, draw.randint(1, 2 * span))
            result = run(folder, scheduler, moments, workers)
            (folder / "result.json").write_text(json.dumps(result))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            num_killed += 1
        elif status == 0:
            break
        else:
            sys.exit(f"attempt {attempt} ended with {status}")
    stored = (folder / "stages" / "stored.log").read_text().split()
    result = json.loads((folder / "result.json").read_text())
    print(json.dumps({"killed": num_killed, "stored": stored, "result": result}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
