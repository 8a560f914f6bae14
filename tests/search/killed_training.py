"""`python killed_training.py FOLDER SPEC START SCHEDULER SEED KILLS TRIALS`: a study that trains a
real, tiny model, once whole, and once in a process that is killed KILLS times by kill -9, each time
at a seeded moment (an optimizer step, an evaluation, before or after a commit of the journal), and
started again until it is done. Forks, so that torch loads once. Prints of both what was recorded
and what was trained.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import torch
from transformers import BertModel

from autoglm.clock import SystemClock
from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.stage_chain import Cost, Progress, StageChain
from autoglm.search.config import SearchConfig
from autoglm.search.journal import OwnedJournal
from autoglm.search.space import read_space
from autoglm.search.study import Study
from autoglm.state.engine import open_state
from autoglm.state.event_log import EventLog
from autoglm.training import stages
from autoglm.training.worker import Worker
from search.killed_study import Moments, journal_with

# Here and not in each child: libraries that are loaded when they are first used.
LOADED = (BertModel, optuna.samplers.TPESampler, optuna.storages.JournalStorage)
SPACE = {
    "lr": {"loguniform": [1e-4, 1e-2]},
    "epochs": {"choice": [1, 2, 3]},
    "trainable_layers": {"choice": [0, 1, 2]},
}
KEYS = [f"training.{name}" for name in SPACE]


class Trains:
    """The worker's side of the port, in this process: what kills it kills the study."""

    def __init__(self, folder: Path, spec: RunSpec, start: str, moments: Moments) -> None:
        self._moments = moments
        self._worker = Worker(folder / "work", self._told, cache=folder / "cache")
        self._ask(
            "open",
            spec=to_json(spec),
            start=start,
            start_name="s",
            origin="s",
            made_by={},
            base=start,
        )

    def _told(self, event: Mapping[str, Any]) -> None:
        if event["kind"] in {"training", "progress", "evaluation"}:
            self._moments.pass_by()

    def _ask(self, call: str, **arguments: Any) -> Any:
        return self._worker.answer({"id": 1, "call": call, **arguments})

    def plan(self, params: Mapping[str, Any]) -> StageChain:
        return from_json(StageChain, self._ask("plan", params=dict(params)))

    def cost(self, chain: StageChain) -> Cost:
        return from_json(Cost, self._ask("cost", chain=to_json(chain)))

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        asked = {"chain": to_json(chain), "to_step": to_step}
        return from_json(Progress, self._ask("advance", **asked))


def run(folder: Path, spec: RunSpec, start: str, scheduler: str, trials: int, moments: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    OwnedJournal._flush = journal_with(moments)  # type: ignore[method-assign]
    study = Study(
        project="p", name="killed", metric=spec.config["evaluate"]["metric"], seed=7, defaults={},
        config=SearchConfig(trials=trials, scheduler=scheduler, budget=timedelta(hours=9)),
        dimensions=read_space(SPACE, KEYS), clock=SystemClock(),
        runners=[Trains(folder, spec, start, moments)],
        log=EventLog(open_state(folder / "state.db")), on_event=lambda _event: None,
    )  # fmt: skip
    return to_json(study.run(threading.Event()))


def main(folder: Path, asked: tuple[Any, ...], seed: int, kills: int) -> None:
    torch.set_num_threads(1)
    if child(folder / "whole", asked, kill_at=0):
        sys.exit("the study that is not killed has failed")
    num_killed, span = 0, max(8, 16 * asked[-1] // (kills + 1))
    for attempt in range(20 * kills + 2):
        draw = random.Random(f"{seed} {attempt}")
        kill_at = draw.randint(1, span) if num_killed < kills else 0
        status = child(folder / "killed", asked, kill_at=kill_at)
        if os.WIFSIGNALED(status):
            num_killed += 1
        elif status == 0:
            break
        else:
            sys.exit(f"attempt {attempt} ended with {status}")
    found = {name: recorded(folder / name) for name in ("whole", "killed")}
    print(json.dumps({"kills": num_killed, **found}))


def child(folder: Path, asked: tuple[Any, ...], *, kill_at: int) -> int:
    pid = os.fork()
    if pid == 0:
        result = run(folder, *asked, Moments(kill_at, 0))
        (folder / "result.json").write_text(json.dumps(result))
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def recorded(folder: Path) -> dict[str, Any]:
    """The study, and the digest of the weights of each stage that is stored."""
    found = {
        path.parent.name: stages.stored(path.parent)
        for path in (folder / "work" / "stages").glob(f"*/{stages.MANIFEST}")
    }
    shas = {key: each["sha256"] for key, each in found.items() if each is not None}
    return {"result": json.loads((folder / "result.json").read_text()), "weights": shas}


if __name__ == "__main__":
    named = from_json(RunSpec, json.loads(Path(sys.argv[2]).read_text()))
    seed, kills, trials = map(int, sys.argv[5:])
    main(Path(sys.argv[1]), (named, sys.argv[3], sys.argv[4], trials), seed, kills)
