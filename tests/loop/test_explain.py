"""From a row to the models that learnt from it and back, and out again, on a released project."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def autoglm(*arguments: str, code: int = 0) -> Any:
    command = [sys.executable, "-m", "autoglm.cli", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def project(round_trip: Any) -> Path:
    folder: Path = round_trip.project()
    return folder


def a_key(project: Path) -> str:
    (source,) = project.glob("*.db")
    with sqlite3.connect(source) as connection:
        (table,) = connection.execute(
            "select name from sqlite_master where type = 'table'"
        ).fetchone()
        key = connection.execute(f"select * from {table} order by rowid limit 1")
        names = [each[0] for each in key.description]
        return str(key.fetchone()[names.index("id")])


def test_a_row_leads_to_its_model_and_the_model_to_its_rows(project: Path) -> None:
    at = ("-C", str(project))
    key = a_key(project)
    row = autoglm("explain", "--row", key, *at)
    model = autoglm("explain", "stable", *at)
    (change,) = row["changes"]
    assert row["now"]["state"] in {"train", "validation", "test"}
    assert [m["digest"] for m in row["models"]] == [model["model"]["digest"]]
    (run,) = row["runs"]
    assert run["run_id"] == model["run"]["run_id"]
    assert run["dataset_version"] == model["dataset"]["version"] >= change["table_version"]
    assert change["trace_id"] in model["dataset"]["traces"]
    shown = autoglm("data", "show", *at)
    assert shown["version"] == model["dataset"]["version"]
    (version,) = autoglm("data", "versions", *at)["versions"]
    assert version["rows"] == 200
    missing = autoglm("explain", "--row", "nobody", *at, code=1)
    assert missing["error"]["code"] == "data.no_such_row"
    both = autoglm("explain", "stable", "--row", key, *at, code=2)
    assert both["error"]["code"] == "cli.bad_call"


def test_an_erased_row_names_its_models_and_is_gone_after_gc(project: Path) -> None:
    at = ("-C", str(project))
    key = a_key(project)
    before = autoglm("data", "show", *at)["version"]
    erased = autoglm("data", "erase", "--key", key, *at)
    assert [m["number"] for m in erased["models"]] == [1]
    found = autoglm("data", "diff", str(before), str(erased["version"]), *at)
    assert (found["removed"], found["added"]) == ([key], [])
    plan = autoglm("gc", str(project), "--plan")
    done = autoglm("gc", str(project))
    assert plan["table_files"] == done["table_files"] > 0
    gone = autoglm("data", "diff", str(before), str(erased["version"]), *at, code=1)
    assert gone["error"]["code"] == "data.version_gone"
    again = autoglm("data", "erase", "--key", key, *at, code=1)
    assert again["error"]["code"] == "data.no_such_row"
