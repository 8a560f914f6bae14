"""Stations of the data path, one at a time, as a user calls them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoglm.project import Project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "source.db") as connection:
        connection.execute(
            "create table rows (id integer primary key, text text, label text, at integer)"
        )
        connection.executemany(
            "insert into rows values (?, ?, ?, ?)",
            [(i, f"text number {i}", "ab"[i % 2], i) for i in range(30)],
        )
        connection.execute("insert into rows values (30, 'x', 'a', 30)")
    connection.close()
    settings = {
        "project": "p",
        "model": {"backbone": "x"},
        "data": {
            "source": {
                "url": "sqlite:///source.db", "table": "rows", "key": "id", "cursor": "at",
            },
            "text": "text",
            "label": "label",
            "batch_rows": 10,
            "processors": ["clean", {"name": "length", "min": 3}],
        },
    }  # fmt: skip
    (tmp_path / "autoglm.yaml").write_text(json.dumps(settings))
    return tmp_path


def autoglm(*arguments: str, code: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "autoglm.cli", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_rows_are_collected_then_processed_and_a_dead_letter_comes_back_once_its_cause_is_gone(
    project: Path,
) -> None:
    here = str(project)
    assert autoglm("collect", here) == {"topic": "changes", "events": 31, "backlog": 31}
    assert autoglm("collect", here)["events"] == 0
    done = autoglm("process", here)
    assert (done["rows"], done["dead"]) == (30, 1)
    assert autoglm("process", here) == {"rows": 0, "dead": 0, "version": None}

    found = autoglm("dead-letters", "list", "-C", here)
    [letter] = found["dead_letters"]
    assert (letter["key"], letter["code"]) == ("30", "data.length")
    assert json.loads(letter["raw"])["text"] == "x"
    again = autoglm("dead-letters", "replay", "-C", here)
    assert again == {"replayed": 1, "lost": [], "rows": 0, "dead": 1}
    assert autoglm("dead-letters", "list", "-C", here)["waiting"] == 1

    settings = json.loads((project / "autoglm.yaml").read_text())
    settings["data"]["processors"] = ["clean"]
    (project / "autoglm.yaml").write_text(json.dumps(settings))
    mended = autoglm("dead-letters", "replay", "-C", here, "--code", "data.length")
    assert (mended["rows"], mended["dead"]) == (1, 0)
    assert autoglm("dead-letters", "list", "-C", here) == {"waiting": 0, "dead_letters": []}
    assert {row["_source"] for row in Project(project).table().changes_of(["30"]).to_pylist()} == {
        "sql/rows"
    }
    assert autoglm("dead-letters", "replay", "-C", here)["replayed"] == 0


def test_a_collector_alone_ends_with_an_error_when_the_broker_is_full_and_goes_on_later(
    project: Path,
) -> None:
    here = str(project)
    limit = ("--set", "streaming.max_backlog=15")
    refused = autoglm("collect", here, *limit, code=1)
    assert refused["error"]["code"] == "broker.full"
    assert autoglm("process", here)["rows"] == 20
    assert autoglm("collect", here, *limit)["events"] == 11
    assert autoglm("process", here)["rows"] == 10


@pytest.mark.parametrize(
    ("assignment", "code"),
    [
        ("data.processors=[{name: length, least: 3}]", "config.wrong_value"),
        ("data.processors=[{name: length, min: 3, max: 1}]", "config.wrong_value"),
        ("data.processors=[lenght]", "plugin.unknown"),
        ("streaming.broker.kind=rabbit", "plugin.unknown"),
        ("streaming.workers=0", "config.wrong_value"),
        ("streaming.lease=10ms", "config.wrong_value"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(project: Path, assignment: str, code: str) -> None:
    exit_code = 1 if code.startswith("plugin") else 2
    refused = autoglm("process", str(project), "--set", assignment, code=exit_code)
    assert refused["error"]["code"] == code
