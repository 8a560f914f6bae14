"""`autoglm up` as a user meets it: one address, real processes, some of which are killed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from conftest import learnable_rows

FAST = [
    "--set", "serving.port=0",
    "--set", "search.trials=1",
    "--set", "search.space={trainable_layers: {choice: [0]}}",
    "--set", "training.epochs=1",
    "--set", "training.threads=1",
    "--set", "trigger.debounce=1s",
    "--set", "release.step_deadline=2s",
    "--set", "evaluate.margin=20%",
]  # fmt: skip
# Ends a test that hangs; a busy machine may well need minutes for a run.
SECONDS = 600.0
EARLY = "key-of-the-early-run"


def until(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            found = condition()
        except httpx.TransportError:
            found = None
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds:.0f} s")


@dataclass(frozen=True)
class Up:
    folder: Path
    address: str
    process: subprocess.Popen[str]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, timeout=60)

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        named = {k.replace("_", "-"): v for k, v in headers.items()}
        return httpx.post(self.address + path, json=body, headers=named, timeout=60)

    def is_idle(self) -> bool:
        statuses = {r["status"] for r in self.get("/api/v1/runs").json()["runs"]}
        return not statuses & {"admitted", "running"}

    def child(self, module: str) -> psutil.Process | None:
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if module in " ".join(process.cmdline()):
                return process
        return None


@pytest.fixture(scope="module")
def up(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_backbone: Path,
    share_graphs: Callable[[Path], None],
) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up") / "project"
    rows = folder.parent / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in learnable_rows(200)))
    autoglm = [sys.executable, "-m", "autoglm.cli"]
    subprocess.run(
        [*autoglm, "init", folder, "--from", rows, "--backbone", tiny_backbone], check=True
    )
    share_graphs(folder)
    process = subprocess.Popen(
        [*autoglm, "up", str(folder), "--json", *FAST], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield first_models(Up(folder, json.loads(process.stdout.readline())["address"], process))
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
        process.stdout.close()


def first_models(started: Up) -> Up:
    # A second run is admitted while the first, which will be the first stable, is being made.
    until(lambda: started.get("/api/v1/runs").json()["runs"])
    early = {"reason": "early"}
    first = started.post("/api/v1/trigger/train", early, idempotency_key=EARLY).json()
    assert (first["outcome"], bool(first["run_id"])) == ("admitted", True)
    until(lambda: started.get("/ready").status_code == 200)
    until(started.is_idle)
    return started


def test_the_rows_that_were_there_became_a_served_model_by_themselves(up: Up) -> None:
    early, run = up.get("/api/v1/runs").json()["runs"]
    assert (run["trigger"], run["status"]) == ("data_changed", "succeeded")
    assert (early["trigger"], early["status"]) == ("manual", "succeeded")
    assert run["result"]["rollout"]["reason"] == "first_release"
    # It was admitted before there was a stable, and met one all the same.
    assert early["result"]["rollout"]["reason"] != "first_release"
    assert up.get(f"/api/v1/runs/{run['run_id']}").json()["run_id"] == run["run_id"]
    models = up.get("/api/v1/models").json()["models"]
    (model,) = (m for m in models if "stable" in m["aliases"])
    maker = next(r for r in (early, run) if r["run_id"] == model["lineage"]["run_id"])
    answer = up.post("/api/v1/predict", {"text": "goal match team"})
    assert answer.json()["model_version"] == model["digest"]
    assert answer.headers["x-autoglm-model-trace"] == maker["trace_id"]
    assert up.get("/api/v1/release").json()["aliases"]["stable"] == model["digest"]
    assert run["run_id"] in up.get("/").text
    assert model["digest"][:12] in up.get("/metrics").text
    assert "/api/v1/trigger/train" in up.get("/api/v1/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/api/v1/runs/run-none", b"", 404, "run.unknown"),
        ("GET", "/api/v1/runs?limit=0", b"", 422, "api.invalid"),
        ("GET", "/nowhere", b"", 404, "http.404"),
        ("DELETE", "/api/v1/models", b"", 405, "http.405"),
        ("POST", "/api/v1/trigger/train", b"{", 400, "api.bad_json"),
        ("POST", "/api/v1/trigger/train", b'{"resaon": "x"}', 422, "api.invalid"),
        ("POST", "/api/v1/predict", b"{", 400, "api.bad_json"),
        ("POST", "/api/v1/predict", b'{"text": 3}', 422, "api.invalid"),
        ("POST", "/api/v1/predict", b'{"text": " "}', 422, "data.empty_text"),
        ("POST", "/api/v1/predict", b'{"text": "\\ud800"}', 422, "data.not_utf8"),
        ("POST", "/api/v1/predict", b"[" * 100_000, 400, "api.bad_json"),
        (
            "POST",
            "/api/v1/feedback",
            b'{"request_id": "\\ud800", "label": "x"}',
            422,
            "data.not_utf8",
        ),
        ("POST", "/api/v1/trigger/train", b" " * (2**20 + 1), 413, "api.too_large"),
        ("PATCH", "/api/v1/runs", b"", 405, "http.405"),
        ("GET", "/api/v1/models/", b"", 404, "http.404"),
        ("POST", "/api/v1/predict", b'{"text": "' + b"a" * 2**20 + b'"}', 413, "api.too_large"),
    ],
)
def test_every_bad_request_is_a_problem_with_a_code(
    up: Up, method: str, path: str, content: bytes, status: int, code: str
) -> None:
    headers = {"content-type": "application/json", "idempotency-key": "é".encode("latin-1")}
    answer = httpx.request(method, up.address + path, content=content, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"].startswith("application/problem+json")


def test_a_trigger_without_a_change_makes_no_run_and_a_repeated_key_makes_one(up: Up) -> None:
    before = len(up.get("/api/v1/runs").json()["runs"])
    unchanged = up.post("/api/v1/trigger/train", {"only_if_changed": True})
    assert (unchanged.status_code, unchanged.json()["outcome"]) == (202, "unchanged")
    for body in ({"dry_run": True}, {"dry_run": True, "only_if_changed": True}):
        assert up.post("/api/v1/trigger/train", body).json()["run_id"] is None
    again = up.post("/api/v1/trigger/train", {"reason": "early"}, idempotency_key=EARLY).json()
    early = up.get("/api/v1/runs").json()["runs"][0]
    assert (again["run_id"], early["trigger"]) == (early["run_id"], "manual")
    assert len(up.get("/api/v1/runs").json()["runs"]) == before


def test_predictions_go_on_while_control_is_dead_and_control_comes_back(up: Up) -> None:
    control = until(lambda: up.child("processes.control"))
    control.send_signal(signal.SIGKILL)
    control.wait(10)
    assert up.post("/api/v1/predict", {"text": "goal"}).status_code == 200
    until(lambda: up.get("/api/v1/runs").status_code == 200)
    assert until(lambda: up.child("processes.control")).pid != control.pid


def test_a_killed_gateway_comes_back_with_its_routes(up: Up) -> None:
    gateway = until(lambda: up.child("gateway_main"))
    gateway.send_signal(signal.SIGKILL)
    until(lambda: up.post("/api/v1/predict", {"text": "goal"}).status_code == 200)


def test_rows_that_change_after_the_stream_process_was_killed_make_a_run(up: Up) -> None:
    before = up.get("/api/v1/runs").json()["runs"][0]["run_id"]
    stream = until(lambda: up.child("processes.stream"))
    stream.send_signal(signal.SIGKILL)
    with sqlite3.connect(up.folder / "data.db") as connection:
        connection.executemany(
            "insert into rows (text, label) values (?, ?)",
            [(row["text"], row["label"]) for row in learnable_rows(40, seed=3)],
        )
    connection.close()
    run = until(lambda: (r := up.get("/api/v1/runs").json()["runs"][0])["run_id"] != before and r)
    assert (run["trigger"], run["dataset_version"]["rows"]) == ("data_changed", 240)


def test_routes_that_a_dead_gateway_left_behind_are_set_right(up: Up) -> None:
    until(up.is_idle)
    file = up.folder / ".autoglm/default/routes.json"
    stable = up.get("/api/v1/release").json()["aliases"]["stable"]
    models = [m["digest"] for m in up.get("/api/v1/models").json()["models"]]
    other = next(digest for digest in models if digest != stable)
    gateway = until(lambda: up.child("gateway_main"))
    gateway.send_signal(signal.SIGSTOP)
    table = json.loads(file.read_text())
    table |= {"candidate": other, "candidate_weight": 50}
    table["folders"][other] = str(up.folder / ".autoglm/default/models" / other)
    file.write_text(json.dumps(table))
    gateway.send_signal(signal.SIGKILL)
    until(lambda: json.loads(file.read_text())["candidate"] == "")
    answer = until(lambda: (r := up.post("/api/v1/predict", {"text": "goal"})).is_success and r)
    assert answer.json()["model_version"] == stable


def test_a_second_owner_is_refused_and_the_end_leaves_no_process(up: Up) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "autoglm.cli", "up", str(up.folder), *FAST],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (second.returncode, str(up.process.pid) in second.stderr) == (2, True)
    children = psutil.Process(up.process.pid).children(recursive=True)
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(60) == 0
    _gone, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert os.path.exists(up.folder / ".autoglm/default/state.db")
