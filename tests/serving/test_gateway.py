"""The gateway with real worker processes and a tiny real graph: every request is counted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from autoglm.contracts.rollout import RouteTable
from autoglm.contracts.task import TASKS
from autoglm.errors import DataError, ReleaseError
from autoglm.modeling.images import DOT
from autoglm.release.gateway_client import GatewayClient
from autoglm.release.replay import ReplayedTraffic
from autoglm.serving.config import ServingConfig
from autoglm.serving.gateway import _read
from autoglm.serving.gateway_main import listen
from autoglm.serving.launcher import GatewayProcess, socket_folder


def make_model(folder: Path, labels: list[str]) -> Path:
    """A graph whose logits are the same for every text: enough to be routed and measured."""
    import onnx
    from onnx import TensorProto, helper
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "l"])
        for n in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2])
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["m", "one"], ["s"], keepdims=1),
        helper.make_node("Cast", ["input_ids"], ["i"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["i"], ["u"], keepdims=0),
        helper.make_node("Mul", ["s", "u"], ["su"]),
        helper.make_node("Concat", ["su", "s"], ["c"], axis=1),
        helper.make_node("Mul", ["c", "w"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("w", TensorProto.FLOAT, [2], [0.0, 1.0]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(folder / "model.onnx"))
    facts = {"labels": labels, "max_length": 32, "pad_id": 0}
    (folder / "autoglm.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def routes(tmp_path: Path) -> RouteTable:
    folders = {d * 32: str(make_model(tmp_path / d, ["x", d])) for d in "sc"}
    return RouteTable(
        project="p",
        generation=1,
        stable="s" * 32,
        candidate="",
        candidate_weight=0,
        folders=folders,
        traces={"s" * 32: "t" * 32},
        salt="salt",
    )


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    started = start_gateway(tmp_path)
    yield started
    started.close()


def start_gateway(folder: Path, **config: Any) -> GatewayProcess:
    (folder / "state").mkdir()
    return GatewayProcess.start(
        state=folder / "state",
        project="p",
        config=ServingConfig(port=0, **config),
        control_socket=None,
        logs=folder / "logs",
    )


def ask(gateway: GatewayProcess, body: Any, **headers: str) -> httpx.Response:
    names = {k.replace("_", "-"): v for k, v in headers.items()}
    return httpx.post(f"{gateway.address}/api/v1/predict", json=body, headers=names, timeout=60)


def worker_pids(gateway: GatewayProcess) -> list[int]:
    import psutil

    return [
        p.pid
        for p in psutil.Process(gateway.pid).children()
        if "model_worker" in " ".join(p.cmdline())
    ]


def test_the_second_write_of_an_answer_does_not_wait_for_the_client() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_answers_routes_and_bad_requests(gateway: GatewayProcess, routes: RouteTable) -> None:
    admin = GatewayClient(gateway.admin_socket, project="p")
    assert ask(gateway, {"text": "hello"}).json()["code"] == "serving.no_model"
    assert httpx.get(f"{gateway.address}/ready").status_code == 503
    admin.set_routes(replace(routes, candidate="c" * 32, candidate_weight=50))
    assert httpx.get(f"{gateway.address}/ready").status_code == 200

    one = ask(gateway, {"text": "hello"}, x_autoglm_version="s" * 32)
    assert (one.json()["label"], one.headers["x-autoglm-model-trace"]) == ("s", "t" * 32)
    many = ask(gateway, {"texts": ["a", "b"]}, x_autoglm_version="cccc").json()
    assert [r["label"] for r in many["results"]] == ["c", "c"]
    sides = {ask(gateway, {"text": "a"}, x_autoglm_key="same").json()["label"] for _ in range(5)}
    assert len(sides) == 1
    for body, code, status in (
        ({"text": " "}, "data.empty_text", 422),
        ({"text": 3}, "api.invalid", 422),
        ([], "api.invalid", 422),
        ({"text": "x" * 2_000_000}, "api.too_large", 413),
    ):
        reply = ask(gateway, body)
        assert (reply.json()["code"], reply.status_code) == (code, status)
        assert reply.headers["content-type"] == "application/problem+json"
    assert ask(gateway, {"text": "a"}, x_autoglm_version="nobody").status_code == 404
    broken = httpx.post(f"{gateway.address}/api/v1/predict", content=b"{")
    assert broken.json()["code"] == "api.bad_json"
    assert (
        httpx.get(f"{gateway.address}/api/v1/runs").json()["code"] == "serving.control_unavailable"
    )
    assert "autoglm_route_weight" in httpx.get(f"{gateway.address}/metrics").text
    with pytest.raises(ReleaseError, match="not newer"):
        admin.set_routes(routes)
    admin.close()


def test_no_user_sees_the_candidates_death_a_roll_back_or_a_promotion(
    gateway: GatewayProcess, routes: RouteTable
) -> None:
    admin = GatewayClient(gateway.admin_socket, project="p")
    admin.set_routes(routes)
    traffic = ReplayedTraffic(gateway.address, [("some text", "s")], seed=0, clients=3)
    traffic.start()
    before = set(worker_pids(gateway))
    for generation in (2, 4, 6):
        admin.set_routes(
            replace(routes, generation=generation, candidate="c" * 32, candidate_weight=50)
        )
        for pid in set(worker_pids(gateway)) - before:
            os.kill(pid, signal.SIGKILL)
        wait_for_requests(traffic, 60)
        admin.set_routes(replace(routes, generation=generation + 1))
        wait_for_requests(traffic, 20)
    admin.set_routes(replace(routes, generation=10, stable="c" * 32))
    wait_for_requests(traffic, 60)
    traffic.stop()
    report = traffic.report()
    assert report.failed == 0
    assert report.answered == report.sent >= 300
    admin.close()


def wait_for_requests(traffic: ReplayedTraffic, more: int) -> None:
    wanted, deadline = traffic.report().answered + more, time.monotonic() + 60
    while traffic.report().answered < wanted:
        assert time.monotonic() < deadline, "traffic stands still"
        time.sleep(0.02)


def test_a_killed_gateway_comes_back_with_its_routes_on_the_same_address(
    gateway: GatewayProcess, routes: RouteTable
) -> None:
    admin = GatewayClient(gateway.admin_socket, project="p")
    admin.set_routes(routes)
    address = gateway.address
    os.kill(gateway.pid, signal.SIGKILL)
    while gateway._process is not None and gateway._process.poll() is None:
        time.sleep(0.01)
    gateway.restart_if_dead()
    assert gateway.address == address
    assert ask(gateway, {"text": "hello"}).json()["label"] == "s"
    current = admin.routes()
    assert current is not None
    assert current.generation == 1
    admin.close()


def test_children_end_with_their_parent(gateway: GatewayProcess, routes: RouteTable) -> None:
    import psutil

    admin = GatewayClient(gateway.admin_socket, project="p")
    admin.set_routes(routes)
    admin.close()
    workers = [psutil.Process(pid) for pid in worker_pids(gateway)]
    assert workers
    os.kill(gateway.pid, signal.SIGKILL)
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert (len(gone), alive) == (len(workers), [])


def test_a_worker_that_hangs_costs_a_request_no_more_than_the_timeout(
    tmp_path: Path, routes: RouteTable
) -> None:
    gateway = start_gateway(tmp_path, timeout=timedelta(seconds=1))
    try:
        admin = GatewayClient(gateway.admin_socket, project="p")
        admin.set_routes(routes)
        (pid,) = worker_pids(gateway)
        os.kill(pid, signal.SIGSTOP)
        late = ask(gateway, {"text": "hello"})
        assert (late.status_code, late.json()["code"]) == (504, "serving.timeout")
        os.kill(pid, signal.SIGCONT)
        assert ask(gateway, {"text": "hello"}).status_code == 200
        admin.close()
    finally:
        gateway.close()


def test_a_full_queue_turns_requests_away_and_answers_the_others(
    tmp_path: Path, routes: RouteTable
) -> None:
    gateway = start_gateway(tmp_path, max_queue=4)
    try:
        admin = GatewayClient(gateway.admin_socket, project="p")
        admin.set_routes(routes)
        (pid,) = worker_pids(gateway)
        os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(24) as pool:
            replies = [pool.submit(ask, gateway, {"texts": ["a", "b"]}) for _ in range(24)]
            time.sleep(1)  # they are all with the worker when it wakes up
            os.kill(pid, signal.SIGCONT)
        found = Counter((r.result().status_code, r.result().json().get("code")) for r in replies)
        assert set(found) == {(200, None), (503, "serving.queue_full")}
        admin.close()
    finally:
        gateway.close()


def image_model(folder: Path) -> Path:
    """A graph that says `bright` of an image whose mean is below the half, so that DOT is dark."""
    import onnx
    from onnx import TensorProto, helper

    folder.mkdir(parents=True)
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["b", 1, 4, 4])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2])
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values"], ["m"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Reshape", ["m", "column"], ["c"]),
        helper.make_node("Mul", ["c", "w"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("column", TensorProto.INT64, [2], [-1, 1]),
        helper.make_tensor("w", TensorProto.FLOAT, [2], [-1.0, 1.0]),
    ]
    graph = helper.make_graph(nodes, "g", [pixels], [output], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    onnx.save(made, str(folder / "model.onnx"))
    size = {"height": 4, "width": 4}
    facts = {
        "autoglm.json": {
            "task": "image-classification", "labels": ["bright", "dark"], "max_length": 1,
            "pad_id": 0,
        },
        "config.json": {"num_channels": 1},
        "preprocessor_config.json": {"size": size, "image_mean": [0.5], "image_std": [0.5]},
    }  # fmt: skip
    for name, fact in facts.items():
        (folder / name).write_text(json.dumps(fact))
    return folder


def test_what_is_no_image_is_its_senders_fault_and_costs_nobody_else_an_answer(
    gateway: GatewayProcess, routes: RouteTable, tmp_path: Path
) -> None:
    admin = GatewayClient(gateway.admin_socket, project="p")
    admin.set_routes(replace(routes, folders={"s" * 32: str(image_model(tmp_path / "images"))}))
    assert ask(gateway, {"image": DOT}).json()["label"] == "dark"
    (pid,) = worker_pids(gateway)
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(6) as pool:  # one batch for all six
        sent = [DOT, "no image", DOT, DOT, "aGVsbG8=", DOT]
        replies = [pool.submit(ask, gateway, {"image": image}) for image in sent]
        time.sleep(1)
        os.kill(pid, signal.SIGCONT)
    found = [(r.result().status_code, r.result().json().get("code")) for r in replies]
    good, bad = (200, None), (422, "data.not_an_image")
    assert found == [good, bad, good, good, bad, good]
    block = admin.measure("block", window=timedelta(0))
    assert block.stable is not None
    assert (block.stable.requests, block.stable.errors) == (5, 0), "no version is blamed"
    admin.close()


@pytest.mark.parametrize(
    ("task", "right", "wrong_form"),
    [
        ("text-classification", "s", [["s"], 1]),
        ("multi-label-classification", ["s", "x"], ["s", 1]),
        ("regression", 3, ["3", ["3"]]),
    ],
)
def test_feedback_in_another_form_than_the_answer_is_refused_not_counted_as_wrong(
    gateway: GatewayProcess, routes: RouteTable, task: str, right: Any, wrong_form: list[Any]
) -> None:
    path = Path(routes.folders["s" * 32]) / "autoglm.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "task": task}))
    admin = GatewayClient(gateway.admin_socket, project="p")
    admin.set_routes(routes)
    number = ask(gateway, {"text": "one two"}).json()["request_id"]

    def feedback(label: str) -> httpx.Response:
        content = f'{{"request_id": "{number}", "label": {label}}}'
        return httpx.post(f"{gateway.address}/api/v1/feedback", content=content.encode())

    for label in wrong_form:
        reply = feedback(json.dumps(label))
        assert (reply.status_code, reply.json()["code"]) == (422, "data.bad_answer")
    for label in ("NaN", "1e999", "1" + "0" * 400):
        assert feedback(label).json()["code"] == "api.invalid"
    assert feedback(json.dumps(right)).status_code == 202
    block = admin.measure("block", window=timedelta(0))
    assert block.stable is not None
    counted = 0 if task == "regression" else 1
    assert block.stable.labelled == counted
    admin.close()


def test_true_answers_are_compared_as_what_they_are() -> None:
    several, tags = TASKS["multi-label-classification"], TASKS["token-classification"]
    assert _read(["b", "a"], frozenset({"a", "b"}), several) == frozenset({"a", "b"})
    assert _read(["O", "B-x"], ("O", "O"), tags) == ("O", "B-x")
    with pytest.raises(DataError, match="2 tokens were answered, but 1 tags are given"):
        _read(["O"], ("O", "O"), tags)


def test_sockets_of_a_killed_process_are_removed_by_the_next_and_those_of_a_living_one_stay() -> (
    None
):
    code = "from autoglm.serving.launcher import socket_folder; print(socket_folder())"
    dead = Path(subprocess.check_output([sys.executable, "-c", code], text=True).strip())
    assert dead.exists()
    first, second = socket_folder(), socket_folder()
    assert (dead.exists(), first.exists(), second.exists()) == (False, True, True)
    first.rmdir()
    second.rmdir()


def test_replayed_order_is_seeded() -> None:
    rows = [(str(i), "a") for i in range(9)]

    def first(seed: int) -> list[str]:
        traffic = ReplayedTraffic("http://127.0.0.1:9", rows, seed=seed, clients=1)
        return [text for text, _ in (next(it) for it in [traffic._endless()] for _ in range(9))]

    assert first(1) == first(1) != first(2)
