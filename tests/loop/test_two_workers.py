"""A cross-validated study of two real training workers over a tiny backbone; one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from autoglm.loop import stations
from autoglm.loop.app import App
from autoglm.project import Project
from conftest import learnable_rows

STUDY = [
    "search.workers=2",
    "search.trials=4",
    "search.folds=2",
    "search.sampler=random",
    "search.space={lr: {loguniform: [1.0e-4, 1.0e-2]}, epochs: {choice: [1, 2, 3]}}",
    "training.batch_size=16",
]


@pytest.fixture
def project(tmp_path: Path, tiny_backbone: Path) -> Path:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in learnable_rows(200)))
    init = ["init", str(tmp_path / "p"), "--from", str(rows), "--backbone", str(tiny_backbone)]
    subprocess.run([sys.executable, "-m", "autoglm.cli", *init], check=True, capture_output=True)
    return tmp_path / "p"


def workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.ZombieProcess):  # one that was killed and not yet waited for
            found += [child] if "autoglm.training.worker_main" in child.cmdline() else []
    return found


def test_a_study_of_two_workers_outlives_one_of_them(project: Path) -> None:
    events: list[Mapping[str, Any]] = []
    found: list[int] = []
    last: list[psutil.Process] = []
    once = threading.Lock()

    def on_event(event: Mapping[str, Any]) -> None:
        events.append(event)
        if event["kind"] == "trial_finished":
            last[:] = workers()
        if event["kind"] == "training" and once.acquire(blocking=False):
            there = workers()
            found.extend(process.pid for process in there)
            os.kill(there[1].pid, signal.SIGKILL)

    opened = Project(project, assignments=STUDY)
    with opened.own("test"):
        app = App(project=opened, on_event=on_event)
        try:
            result = stations.search(app)
        finally:
            app.close()
    survivor, killed = found
    at_the_end = [process.pid for process in last]
    assert survivor in at_the_end
    assert killed not in at_the_end
    assert len(at_the_end) == 2
    assert [event["kind"] for event in events].count("worker_restarted") == 1
    assert [trial.number for trial in result.trials] == [0, 1, 2, 3]
    assert {trial.state for trial in result.trials} == {"complete"}
    assert all(len(trial.folds) == len(trial.interval) == 2 for trial in result.trials)
    begun = [event["number"] for event in events if event["kind"] == "trial_finished"]
    assert sorted(begun) == [0, 1, 2, 3]
    assert not workers()
