"""A second run about nearly the same rows, from the command line with a real, tiny model."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from autoglm.cli.report import show_report
from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.run_spec import RunSpec
from autoglm.loop.refreshing import _question
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
    round_trip: RoundTrip, capsys: pytest.CaptureFixture[str]
) -> None:
    project = round_trip.project()
    change_rows(project, 1, 4)
    # With all rows encoded it would cost nothing to go over all of them.
    shutil.rmtree(project / ".autoglm" / "default" / "cache" / "prefix")
    second, said = run(project)
    assert (second["stopped_by"], second["num_trials"]) == ("refresh", 1)
    assert "2.0 % of the rows changed since study" in said
    assert "from stable, on what is new and a sample of the other rows" in said
    assert second["best"]["params"]["training.rehearsal"] == 0.1
    show = [sys.executable, "-m", "autoglm.cli", "search", "show", str(project), "--json"]
    shown = json.loads(subprocess.run(show, capture_output=True, text=True, check=True).stdout)
    why = shown["trials"][0]["why"]
    kept = list((project / ".autoglm" / "default" / "cache" / "logits").glob("*.safetensors"))
    assert len(kept) == 2, "what both versions said of the test rows, each asked once"
    assert why[0] == "1 of 1 stages of 1 steps", "24 rows in a batch of 32; all 153 are 5 steps"

    show_report(second["report"], "v2", "v1")
    assert re.search(r"^floors for \w+: majority 0\.\d+$", capsys.readouterr().out, re.MULTILINE)
    assert second["report"]["linear_floor"] is None, "stable judges"

    apply = [sys.executable, "-m", "autoglm.cli", "search", "apply", str(project)]
    refused = subprocess.run(apply, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "search.owed_to_stable" in refused.stderr
    assert f"search apply --study {shown['refresh']['of']}" in refused.stderr
    assert not (project / "autoglm.tuned.yaml").exists()

    change_rows(project, 5, 8)
    third, said = run(project, "--set", "training.lr=1e-3")
    assert (third["stopped_by"], third["num_trials"]) == ("trials", 2)
    assert "% of the rows changed" not in said
    show_report(third["report"], "v3", "v2")
    assert re.search(r"majority 0\.\d+, linear [01]\.\d+$", capsys.readouterr().out, re.MULTILINE)


def test_a_copy_of_a_project_goes_on_with_its_own_rows_and_leaves_those_of_the_other(
    round_trip: RoundTrip, tmp_path: Path
) -> None:
    project = round_trip.project()
    copied = Path(shutil.copytree(project, tmp_path / "copied"))
    shutil.rmtree(copied / ".autoglm" / "default" / "cache" / "prefix")  # as above
    before = bytes_of(project)
    change_rows(copied, 1, 4)
    second, _said = run(copied)
    assert (second["stopped_by"], second["num_trials"]) == ("refresh", 1)
    assert second["best"]["params"]["training.rehearsal"] == 0.1, "stable knows the others"
    assert second["dataset_version"]["uri"].startswith(str(copied))
    assert bytes_of(project) == before


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_more_changed_rows_than_search_refresh_are_a_whole_study(round_trip: RoundTrip) -> None:
    project = round_trip.project()
    change_rows(project, 1, 12)
    second, said = run(project)
    assert (second["stopped_by"], second["num_trials"]) == ("trials", 2)
    assert "% of the rows changed" not in said


def test_rows_that_are_read_or_divided_otherwise_are_another_question() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    dataset = DatasetVersion(
        project="p", uri="u", version=1, rows=9, split_rows={}, labels=("a", "b"), label_counts={},
        rare_labels={}, unlabelled_rows=0, dead_rows=0, text="t", label="l",
        split={"validation": 0.1, "test": 0.1}, schema_digest="s", content_digest="c", positions={},
        traceparent="", linked_traces=(), created_at=now,
    )  # fmt: skip
    spec = RunSpec(
        project="p", run_id="r", cause="c", trigger="command", dataset=dataset,
        config={section: {} for section in ("model", "training", "search", "evaluate", "data")},
        config_digest="c", seed=0, stable="", folder="", traceparent="", tuning="default",
        created_at=now,
    )  # fmt: skip
    others = (
        {"split": {"validation": 0.6, "test": 0.1}}, {"split_column": "part"}, {"text": "title"},
        {"label": "topic"}, {"label_separator": ";"},
    )  # fmt: skip
    for other in ({"version": 2}, *others):
        asked = _question(replace(spec, dataset=replace(dataset, **other)), like=spec)
        assert (asked == _question(spec)) == (other not in others)
