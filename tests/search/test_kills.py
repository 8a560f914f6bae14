from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from autoglm.state.engine import open_state
from autoglm.state.event_log import EventLog
from search.killed_study import TRIALS

PROGRAM = Path(__file__).with_name("killed_study.py")


def study(
    folder: Path, scheduler: str, *, seed: int = 0, kills: int = 0, workers: int = 1
) -> dict[str, Any]:
    folder.mkdir()
    tests = str(PROGRAM.parents[1])
    paths = [tests, *filter(None, [os.environ.get("PYTHONPATH", "")])]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), scheduler, str(seed), str(kills), str(workers)],
        capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """A stage that was stored before a kill and told after it was paid for by nobody; what was paid
    and what was not add up to the same.
    """

    def plain(trial: dict[str, Any]) -> dict[str, Any]:
        cost = trial["cpu_seconds"] + trial["saved"].get("stage_tree", 0.0)
        return {**trial, "seconds": 0, "cpu_seconds": round(cost, 6), "saved": {}}

    trials = [plain(trial) for trial in result["trials"]]
    times = {"seconds": 0, "cpu_seconds": 0, "trials": trials, "best": plain(result["best"])}
    return {**result, **times}


def check(tmp_path: Path, scheduler: str, seed: int, kills: int) -> None:
    whole = study(tmp_path / "whole", scheduler)
    killed = study(tmp_path / "killed", scheduler, seed=seed, kills=kills)
    assert killed["killed"] == kills
    assert without_times(killed["result"]) == without_times(whole["result"])
    # No stage was trained twice, and none that the whole study had no need of.
    assert len(set(killed["stored"])) == len(killed["stored"])
    assert set(killed["stored"]) == set(whole["stored"])


def check_two_workers(tmp_path: Path, scheduler: str, seed: int, kills: int) -> None:
    killed = study(tmp_path / "killed", scheduler, seed=seed, kills=kills, workers=2)
    assert killed["killed"] == kills
    assert len(set(killed["stored"])) == len(killed["stored"])
    assert [trial["number"] for trial in killed["result"]["trials"]] == list(range(TRIALS))
    log = EventLog(open_state(tmp_path / "killed" / "state.db", read_only=True))
    told = Counter(
        event.data["trial_id"]
        for event in log.read("study/killed")
        if "trial_id" in event.data
        and TrialState(event.data.get("state", TrialState.RUNNING)).is_finished()
    )
    assert set(told.values()) == {1}
    assert len(told) >= TRIALS


@pytest.mark.parametrize("scheduler", ["none", "asha"])
def test_two_workers_killed_ten_times_lose_no_trial_and_tell_none_twice(
    tmp_path: Path, scheduler: str
) -> None:
    check_two_workers(tmp_path, scheduler, seed=2, kills=10)


@pytest.mark.soak
@pytest.mark.parametrize("scheduler", ["none", "median", "asha", "hyperband"])
def test_two_workers_killed_a_hundred_times_lose_no_trial_and_tell_none_twice(
    tmp_path: Path, scheduler: str
) -> None:
    seed, kills = int(os.environ.get("SEED", "1")), int(os.environ.get("KILLS", "100"))
    check_two_workers(tmp_path, scheduler, seed, kills)


@pytest.mark.parametrize("scheduler", ["none", "median", "asha", "hyperband"])
def test_a_study_that_was_killed_ten_times_is_the_study_that_was_not(
    tmp_path: Path, scheduler: str
) -> None:
    check(tmp_path, scheduler, seed=1, kills=10)


@pytest.mark.soak
@pytest.mark.parametrize("scheduler", ["none", "median", "asha", "hyperband"])
def test_a_study_that_was_killed_a_hundred_times_is_the_study_that_was_not(
    tmp_path: Path, scheduler: str
) -> None:
    seed, kills = int(os.environ.get("SEED", "1")), int(os.environ.get("KILLS", "100"))
    check(tmp_path, scheduler, seed, kills)
