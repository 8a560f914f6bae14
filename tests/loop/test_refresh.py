"""A second run about nearly the same rows, from the command line with a real, tiny model."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import FAST, RoundTrip


def run(project: Path, *more: str) -> tuple[dict[str, Any], str]:
    """What `run --json` says, and its log."""
    command = [sys.executable, "-m", "autoglm.cli", "run", str(project), "--json", *FAST, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout), done.stderr


def change_rows(project: Path, first: int, last: int) -> None:
    with sqlite3.connect(project / "data.db") as connection:
        connection.execute(
            "update rows set text = text || ' again' where rowid between ? and ?", (first, last)
        )
    connection.close()


def test_few_changed_rows_are_a_refresh_and_another_question_about_them_is_a_whole_study(
    round_trip: RoundTrip,
) -> None:
    project = round_trip.project()
    change_rows(project, 1, 4)
    second, said = run(project)
    assert (second["stopped_by"], second["num_trials"]) == ("refresh", 1)
    assert "2.0 % of the rows changed since study" in said
    assert "from stable" in said

    change_rows(project, 5, 8)
    third, said = run(project, "--set", "training.lr=1e-3")
    assert (third["stopped_by"], third["num_trials"]) == ("trials", 2)
    assert "% of the rows changed" not in said


def test_more_changed_rows_than_search_refresh_are_a_whole_study(round_trip: RoundTrip) -> None:
    project = round_trip.project()
    change_rows(project, 1, 12)
    second, said = run(project)
    assert (second["stopped_by"], second["num_trials"]) == ("trials", 2)
    assert "% of the rows changed" not in said
