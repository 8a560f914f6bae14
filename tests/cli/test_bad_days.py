"""The command line on bad days: a full disk, a source that goes away, a reader that does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import FAST, RoundTrip

FASTER = [
    "--set", "search.trials=1",
    "--set", "search.space={trainable_layers: {choice: [0]}}",
    "--set", "training.epochs=1",
    "--set", "training.threads=1",
]  # fmt: skip


def autoglm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoglm.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


def run(project: Path, said: list[str] = FASTER) -> dict[str, Any]:
    done = autoglm("run", project, "--json", *said)
    assert done.returncode == 0, done.stderr + done.stdout
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def is_refused(done: subprocess.CompletedProcess[str], code: str, exit_code: int = 1) -> bool:
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert code in done.stdout + done.stderr
    return True


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path, *, left: int) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(b"\0" * (shutil.disk_usage(path.parent).free - left))


def test_a_full_disk_loses_no_row_and_the_run_is_made_when_there_is_room(
    small_disk: Path,
    rows_file: Path,
    tiny_backbone: Path,
    share_graphs: Callable[[Path], None],
) -> None:
    project = small_disk / "project"
    assert (
        autoglm("init", project, "--from", rows_file, "--backbone", tiny_backbone).returncode == 0
    )
    share_graphs(project)
    for left in (0, 100_000, 1_000_000):
        fill(small_disk / "filler", left=left)
        assert is_refused(autoglm("run", project, *FASTER), "storage.")
    (small_disk / "filler").unlink()
    document = run(project)
    assert (document["status"], document["dataset_version"]["rows"]) == ("succeeded", 200)


def test_a_source_that_vanishes_is_named_and_its_return_is_no_change(
    tmp_path: Path, round_trip: RoundTrip
) -> None:
    project = round_trip.project()
    (project / "data.db").rename(tmp_path / "away.db")
    assert is_refused(autoglm("run", project, *FAST), "source.missing")
    assert not (project / "data.db").exists(), "looking for it must not make an empty one"
    (tmp_path / "away.db").rename(project / "data.db")
    assert run(project, FAST)["status"] == "unchanged"
    assert autoglm("doctor", project).returncode == 0


def test_the_words_of_every_command_are_there_without_loading_torch() -> None:
    for name in ("init", "run", "up", "predict", "runs", "models", "release", "doctor"):
        done = autoglm(name, "--help")
        assert done.returncode == 0
        assert "Example" in done.stdout or "Commands" in done.stdout, done.stdout


def test_a_run_whose_reader_went_away_still_stops_in_order_and_can_be_resumed(
    tmp_path: Path, rows_file: Path, tiny_backbone: Path
) -> None:
    project = tmp_path / "project"
    autoglm("init", project, "--from", rows_file, "--backbone", tiny_backbone)
    command = [sys.executable, "-m", "autoglm.cli", "run", str(project), "--json", *FASTER]
    slow = [
        "--set",
        "training.epochs=2000",
        "--set",
        "search.space={trainable_layers: {choice: [2]}}",
    ]
    child = subprocess.Popen(
        [*command, *slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stderr is not None
    next(line for line in child.stderr if line.startswith("run "))
    child.stdout.close()
    child.stderr.close()
    child.terminate()
    assert child.wait(120) == 130
    runs = json.loads(autoglm("runs", "list", "-C", project, "--json").stdout)["runs"]
    assert [r["status"] for r in runs] == ["running"]
