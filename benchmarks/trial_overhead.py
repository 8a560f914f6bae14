"""What a trial costs beside its training and its sampler: CPU milliseconds of the study's own work.

`python -m benchmarks.trial_overhead [--trials N] [--json]`. Real journal in a real state.db, real
sampler, a runner that does nothing. The sampler's own time (everything that Optuna calls on it) is
measured inside the study and taken off.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from autoglm.clock import SystemClock
from autoglm.contracts.record import digest
from autoglm.contracts.stage_chain import Cost, Progress, Stage, StageChain
from autoglm.plugins import registry
from autoglm.search import samplers
from autoglm.search.config import SearchConfig
from autoglm.search.space import read_space
from autoglm.search.study import Study
from autoglm.state.engine import open_state
from autoglm.state.event_log import EventLog

TARGET_MS = 5.0
KEYS = ["training.lr", "training.trainable_layers", "training.dropout", "training.epochs"]
SPACE = {
    "lr": {"loguniform": [1e-5, 1e-3]},
    "trainable_layers": {"choice": [0, 1, 2, 6]},
    "dropout": {"uniform": [0.0, 0.3]},
    "epochs": {"choice": [1, 2, 4]},
}


class DoNothing:
    """A runner that is done at once."""

    def plan(self, params: Mapping[str, Any]) -> StageChain:
        key = digest(params)
        stages = tuple(
            Stage(key=f"{key}-{i}", parent="", settings=params, num_steps=62, seed=0, data_order="")
            for i in range(params["training.epochs"])
        )
        return StageChain(project="p", params=params, stages=stages)

    def cost(self, chain: StageChain) -> Cost:
        return Cost(
            cpu_seconds=chain.num_steps,
            disk_bytes=0,
            num_steps=chain.num_steps,
            whole=chain.num_steps,
        )

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        return Progress(
            key=chain.key, step=to_step, num_steps=chain.num_steps, cpu_seconds=0.0,
            metrics={"accuracy": 1 - abs(chain.params["training.dropout"] - 0.1)},
            reused_steps=0, folder="",
        )  # fmt: skip


class Timed:
    """Everything that is called on a sampler, with the CPU time it took."""

    seconds = 0.0

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._sampler, name)
        return self._timed(member) if callable(member) else member

    def _timed(self, member: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.process_time()
            try:
                return member(*arguments, **named)
            finally:
                Timed.seconds += time.process_time() - started

        return timed


def measure(scheduler: Any, trials: int) -> dict[str, float]:
    registry.register("sampler", "timed", lambda seed: Timed(samplers.tpe(seed)), replace=True)
    with tempfile.TemporaryDirectory() as folder:
        study = Study(
            project="p", name="overhead",
            config=SearchConfig(
                trials=trials, sampler="timed", scheduler=scheduler, budget=timedelta(hours=1)
            ),
            dimensions=read_space(SPACE, KEYS), defaults={}, metric="accuracy", seed=1,
            runners=[DoNothing()], log=EventLog(open_state(Path(folder) / "state.db")),
            clock=SystemClock(), on_event=lambda _event: None,
        )  # fmt: skip
        Timed.seconds = 0.0
        started = time.process_time()
        study.run(threading.Event())
        seconds = time.process_time() - started
    return {
        "sampler_ms": 1000 * Timed.seconds / trials,
        "overhead_ms": 1000 * (seconds - Timed.seconds) / trials,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    arguments, _ = parser.parse_known_args()
    measure("none", 8)  # imports
    found = {
        name: {key: round(value, 2) for key, value in measure(name, arguments.trials).items()}
        for name in ("none", "median", "asha", "hyperband")
    }
    if arguments.json:
        print(json.dumps({"target_ms": TARGET_MS, "trials": arguments.trials, "found": found}))
        return
    print(f"CPU milliseconds per trial, {arguments.trials} trials; target {TARGET_MS} ms")
    for name, row in found.items():
        print(f"  {name:<10} overhead {row['overhead_ms']:5.2f}   sampler {row['sampler_ms']:5.2f}")


if __name__ == "__main__":
    main()
