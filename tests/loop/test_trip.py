"""The loop from the command line: real processes, a tiny real model."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import FAST, RoundTrip, learnable_rows


def autoglm(*arguments: str | Path, code: int = 0) -> str:
    command = [sys.executable, "-m", "autoglm.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def run(project: Path, *more: str, code: int = 0) -> Any:
    return json.loads(autoglm("run", project, "--json", *FAST, *more, code=code))


@pytest.fixture
def project(
    tmp_path: Path, rows_file: Path, tiny_backbone: Path, share_graphs: Callable[[Path], None]
) -> Path:
    folder = tmp_path / "project"
    autoglm("init", folder, "--from", rows_file, "--backbone", tiny_backbone)
    share_graphs(folder)
    return folder


def add_rows(project: Path, count: int, seed: int) -> None:
    with sqlite3.connect(project / "data.db") as connection:
        connection.executemany(
            "insert into rows (text, label) values (?, ?)",
            [(row["text"], row["label"]) for row in learnable_rows(count, seed=seed)],
        )
    connection.close()


def stored_keys(project: Path) -> list[str]:
    """Keys in the Delta table, read by deltalake alone."""
    from deltalake import DeltaTable

    return sorted(
        DeltaTable(str(project / ".autoglm/default/table")).to_pyarrow_table()["_key"].to_pylist()
    )


def test_changed_rows_become_a_released_model_and_nothing_changed_makes_no_run(
    round_trip: RoundTrip,
) -> None:
    project, first = round_trip.project(), round_trip.first
    assert first["status"] == "succeeded"
    assert (first["rollout"]["verdict"], first["rollout"]["reason"]) == (
        "Successful",
        "first_release",
    )
    assert first["dataset_version"]["rows"] == 200
    assert first["num_trials"] == 2

    again = run(project)
    assert (again["status"], again["run_id"], again["model_version"]) == ("unchanged", None, None)

    add_rows(project, 60, seed=1)
    ten_megabytes = "goal " * 2_000_000
    with sqlite3.connect(project / "data.db") as connection:
        connection.execute("insert into rows (text, label) values (?, ?)", (ten_megabytes, "sport"))
    connection.close()
    second = run(project)
    assert second["rollout"]["verdict"] == "Successful", second["rollout"]
    assert second["rollout"]["replayed_traffic"]
    assert second["dataset_version"]["rows"] == 260
    stable = json.loads(autoglm("models", "show", "stable", "-C", project, "--json"))
    assert stable["digest"] == second["model_version"]
    assert stable["lineage"]["dataset_version"] == second["dataset_version"]["version"]
    assert stable["lineage"]["parent"] == first["model_version"]
    status = json.loads(autoglm("release", "status", "-C", project, "--json"))
    assert [e["weight"] for e in status["events"] if e["kind"] == "weight_set"] == [5, 25, 50, 100]
    assert len(stored_keys(project)) == len(set(stored_keys(project))) == 261, "a dead letter too"
    with sqlite3.connect(project / "data.db") as connection:
        (longest,) = connection.execute("select max(length(text)) from rows").fetchone()
    connection.close()
    assert longest == len(ten_megabytes), "it became a dead letter and stays as it was"
    lines = (project / ".autoglm/default/logs/trainer.jsonl").read_text().splitlines()
    trace_ids = {json.loads(line)["trace_id"] for line in lines}
    assert second["trace_id"] in trace_ids


def test_the_exported_folder_gives_the_logits_of_predict(
    round_trip: RoundTrip, tmp_path: Path
) -> None:
    project = round_trip.project()
    inputs = tmp_path / "in.jsonl"
    texts = [row["text"] for row in learnable_rows(20, seed=5)]
    inputs.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, " "]))
    lines = [
        json.loads(line)
        for line in autoglm("predict", project, "--input", inputs, "--json").splitlines()
    ]
    assert len(lines) == 21
    assert lines[-1]["error"] == "data.empty_text"
    autoglm("models", "export", tmp_path / "out", "-C", project)
    script = (
        "import sys, json, torch\n"
        "from tokenizers import Tokenizer\n"
        "from transformers import AutoModelForSequenceClassification as A\n"
        "folder, texts = sys.argv[1], json.loads(sys.argv[2])\n"
        "model = A.from_pretrained(folder, trust_remote_code=True).eval()\n"
        "tokens = Tokenizer.from_file(folder + '/tokenizer.json')\n"
        "out = []\n"
        "for text in texts:\n"
        "    p = torch.softmax(model(torch.tensor([tokens.encode(text).ids])).logits[0], -1)\n"
        "    out.append([model.config.id2label[int(p.argmax())], float(p.max())])\n"
        "assert 'autoglm' not in sys.modules\n"
        "print(json.dumps(out))\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    opened = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out"), json.dumps(texts)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    for line, (label, score) in zip(lines, json.loads(opened.stdout), strict=False):
        assert line["label"] == label
        assert line["score"] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("moment", ["search", "release"])
def test_kill_of_the_whole_process_group_is_resumed_without_loss(
    request: pytest.FixtureRequest, moment: str
) -> None:
    if moment == "release":
        project = request.getfixturevalue("round_trip").project()
        add_rows(project, 60, seed=1)
    else:
        project = request.getfixturevalue("project")
    # The worker loads torch after the line `run`: a kill then comes before the first trial's end.
    command = [sys.executable, "-m", "autoglm.cli", "run", str(project), *FAST]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    wanted = "run " if moment == "search" else "release "
    for line in child.stdout:
        if line.startswith(wanted):
            break
    time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.stdout.close()
    child.wait()
    resumed = json.loads(autoglm("runs", "resume", "-C", project, "--json"))
    assert resumed["status"] == "succeeded"
    keys = stored_keys(project)
    assert len(keys) == len(set(keys)) == resumed["dataset_version"]["rows"]
    assert run(project)["status"] == "unchanged"


def test_a_second_run_on_a_held_project_ends_with_code_2_and_names_the_pid(project: Path) -> None:
    from autoglm.project import Project

    with Project(project).own("the test"):
        command = [sys.executable, "-m", "autoglm.cli", "run", str(project)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(os.getpid()) in done.stderr


def test_without_replay_there_is_no_verdict_for_the_candidate(round_trip: RoundTrip) -> None:
    project, first = round_trip.project(), round_trip.first
    add_rows(project, 60, seed=1)
    second = run(project, "--no-replay")
    assert second["rollout"]["verdict"] == "Inconclusive"
    aliases = json.loads(autoglm("release", "status", "-C", project, "--json"))["aliases"]
    assert aliases["stable"] == first["model_version"]
