"""Kill -9 of a study whose trials train a real, tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoglm.contracts.record import to_json
from autoglm.loop import stations
from autoglm.loop.app import App
from autoglm.project import Project
from conftest import learnable_rows
from search.test_kills import without_times

PROGRAM = Path(__file__).with_name("killed_training.py")
OWN = [
    "training.threads=1",
    "training.batch_size=16",
    "training.precision=fp32",
    "training.checkpoint_steps=2",
    "training.log_steps=1",
]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A run spec in a file; what its run decides by measuring, every study here decides alike."""
    folder = tmp_path_factory.mktemp("killed")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in learnable_rows(90)))
    init = ["init", str(folder / "p"), "--from", str(rows), "--backbone", str(tiny_backbone)]
    subprocess.run([sys.executable, "-m", "autoglm.cli", *init], check=True, capture_output=True)
    project = Project(folder / "p", assignments=OWN)
    with project.own("test"):
        app = App(project=project)
        found = to_json(stations._spec(app))
        app.close()
    path = folder / "spec.json"
    path.write_text(json.dumps(found))
    return path


def study(folder: Path, *arguments: Any) -> dict[str, Any]:
    tests = str(PROGRAM.parents[1])
    paths = [tests, *filter(None, [os.environ.get("PYTHONPATH", "")])]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), *map(str, arguments)],
        capture_output=True, text=True, timeout=3000, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(tmp_path: Path, *asked: Any, seed: int, kills: int, trials: int = 24) -> None:
    found = study(tmp_path, *asked, seed, kills, trials)
    assert found["kills"] == kills
    killed, whole = (without_costs(found[name]["result"]) for name in ("killed", "whole"))
    assert len(whole["trials"]) == trials
    assert killed["trials"] == whole["trials"]
    assert killed["best"] == whole["best"]
    # Every stage was trained to the same bytes, and none that the whole study did not need.
    assert found["killed"]["weights"] == found["whole"]["weights"]


def without_costs(result: dict[str, Any]) -> dict[str, Any]:
    """What a part of the work cost differs when a kill had it done twice, or in another process."""
    found, none = without_times(result), {"cpu_seconds": 0, "peak": {}}
    trials = [{**trial, **none} for trial in found["trials"]]
    return {**found, "trials": trials, "best": {**found["best"], **none}}


def test_a_training_study_that_was_killed_six_times_is_the_study_that_was_not(
    tmp_path: Path, spec: Path, tiny_backbone: Path
) -> None:
    check(tmp_path, spec, tiny_backbone, "asha", seed=1, kills=6, trials=8)


@pytest.mark.soak
@pytest.mark.parametrize("scheduler", ["none", "asha"])
def test_a_training_study_that_was_killed_a_hundred_times_is_the_study_that_was_not(
    tmp_path: Path, spec: Path, tiny_backbone: Path, scheduler: str
) -> None:
    seed, kills = int(os.environ.get("SEED", "1")), int(os.environ.get("KILLS", "100"))
    check(tmp_path, spec, tiny_backbone, scheduler, seed=seed, kills=kills)
