"""etcd as it is, started here; Consul, Spring Config and Nacos by what they answered once."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoglm.config.config import CentreConfig
from autoglm.config.config_loader import Config, bind
from autoglm.config.layers import tree_layer
from autoglm.config.live import LiveConfig
from autoglm.config.schema import Key
from autoglm.errors import ConfigError
from autoglm.integrations.etcd import EtcdCentre
from autoglm.integrations.http_config import consul, nacos, spring
from autoglm.project import Project
from autoglm.settings import Layers, Settings, read_settings
from servers import free_port, until

MINIMAL = """\
project: news
model: {backbone: "package:x"}
data: {source: {url: "sqlite:///a.db", table: t, key: id}, text: body, label: topic}
"""


class Etcd:
    def __init__(self, folder: Path) -> None:
        self.port, peer = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            "etcd", "--data-dir", str(folder), "--listen-client-urls", self.url,
            "--advertise-client-urls", self.url, "--listen-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-cluster", f"default=http://127.0.0.1:{peer}", "--log-level", "error",
        ]  # fmt: skip
        self._log = folder.with_suffix(".log")
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until(self._answers, 60)

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health", timeout=2, trust_env=False).status_code == 200
        return False

    def put(self, key: str, value: str) -> None:
        body = {
            k: base64.b64encode(v.encode()).decode() for k, v in (("key", key), ("value", value))
        }
        httpx.post(f"{self.url}/v3/kv/put", json=body, trust_env=False).raise_for_status()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def needs_etcd() -> None:
    if shutil.which("etcd") is None:
        if os.environ.get("CI"):
            pytest.fail("etcd-server is not installed")
        pytest.skip("etcd-server is not installed")


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    needs_etcd()
    server = Etcd(tmp_path / "etcd")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def etcd_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    needs_etcd()
    server = Etcd(tmp_path_factory.mktemp("etcd") / "data")
    yield server
    server.stop()


# What no JSON text may hold unescaped is not what an operator types either.
KEYS = st.text("abcdefgh", min_size=1, max_size=6)
SCALARS = st.one_of(
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Cn", "Co", "Zl", "Zp"])),
)
INNER = st.dictionaries(KEYS, SCALARS, min_size=1, max_size=3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Free:
    labels: Annotated[Mapping[str, Any], Key("Free.")] = field(default_factory=dict)


def project(folder: Path, centre: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "autoglm.yaml").write_text(MINIMAL + centre)
    return folder


def centre_yaml(etcd: Etcd, more: str = "") -> str:
    return f"config: {{centre: {{kind: etcd, url: '{etcd.url}', prefix: /autoglm/news{more}}}}}\n"


def test_etcd_stands_between_environment_and_command_line(
    etcd: Etcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etcd.put("/autoglm/news/training/lr", "3e-4")
    etcd.put("/autoglm/news/search.space.lr", "{uniform: [0, 1]}")
    etcd.put("/autoglm/news/data/source/key", "77")
    etcd.put("/autoglm/newspaper/training/lr", "9")  # a neighbour whose name begins alike
    monkeypatch.setenv("AUTOGLM_TRAINING_LR", "1e-4")
    monkeypatch.setenv("AUTOGLM_TRAINING_EPOCHS", "4")
    folder = project(tmp_path / "p", centre_yaml(etcd))
    config = Project(folder, assignments=["training.epochs=2"]).config
    assert (config.settings.training.lr, config.settings.training.epochs) == (3e-4, 2)
    # A key names one entry of the map; the others of the default stay (decision 0006).
    assert config.settings.search.space["lr"] == {"uniform": [0, 1]}
    assert config.settings.data.source.key == "77"
    assert config.origin("training.lr").layer.startswith("remote centre (etcd, revision ")


@settings(max_examples=25, deadline=None)
@given(tree=st.dictionaries(KEYS, st.one_of(SCALARS, INNER), max_size=4))
def test_any_tree_of_scalars_survives_dump_and_load_in_etcd(
    etcd_of_module: Etcd, tree: dict[str, Any]
) -> None:
    prefix = f"/autoglm/{uuid.uuid4()}"
    for key, value in tree.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for name, scalar in inner:
            path = f"{prefix}/labels/{key}" + (f"/{name}" if name else "")
            etcd_of_module.put(path, json.dumps(scalar, ensure_ascii=False))
    centre = EtcdCentre(CentreConfig(kind="etcd", url=etcd_of_module.url, prefix=prefix), "default")
    try:
        found, _revision = centre.load()
    finally:
        centre.close()
    assert bind(Free, [tree_layer("etcd", found, place="etcd")]).settings.labels == tree


def test_without_etcd_the_last_good_copy_is_used_and_said(etcd: Etcd, tmp_path: Path) -> None:
    etcd.put("/autoglm/news/training/lr", "3e-4")
    where = Layers(folder=project(tmp_path / "p", centre_yaml(etcd)))
    assert read_settings(where).settings.training.lr == 3e-4
    etcd.stop()
    config = read_settings(where)
    assert config.settings.training.lr == 3e-4
    assert "last good copy of" in config.origin("training.lr").layer
    copy = where.state / "remote_config.json"
    assert copy.stat().st_mode & 0o077 == 0
    copy.unlink()
    config = read_settings(where)
    assert config.settings.training.lr == 2e-4
    assert any("not used" in layer for layer in config.layers)
    project(tmp_path / "p", centre_yaml(etcd, ", required: true"))
    with pytest.raises(ConfigError, match="does not answer") as caught:
        read_settings(where)
    assert caught.value.code == "config.unreachable"


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("training/lrr", "1", "config.unknown_key"),
        ("training/lr", "fast", "config.wrong_value"),
        ("config/centre/url", "http://elsewhere", "config.centre_of_itself"),
        ("a..b", "1", "config.broken"),
    ],
)
def test_what_etcd_says_wrongly_is_refused_with_its_place(
    etcd: Etcd, tmp_path: Path, key: str, value: str, code: str
) -> None:
    etcd.put(f"/autoglm/news/{key}", value)
    with pytest.raises(ConfigError, match="etcd") as caught:
        read_settings(Layers(folder=project(tmp_path / "p", centre_yaml(etcd))))
    assert caught.value.code == code


class Watched:
    """A project that follows its layers, and what it heard."""

    def __init__(self, folder: Path) -> None:
        self.changes: list[list[str]] = []
        self.alarms: list[ConfigError] = []
        self.project = Project(folder)
        self.live: LiveConfig[Settings] = self.project.follow(
            on_change=self.changes.append, alarm=self.alarms.append
        )

    @property
    def config(self) -> Config[Settings]:
        return self.project.config


@pytest.fixture
def watched(etcd: Etcd, tmp_path: Path) -> Iterator[Watched]:
    following = Watched(project(tmp_path / "p", centre_yaml(etcd)))
    time.sleep(0.05)
    yield following
    following.live.stop()


def test_a_change_in_etcd_is_in_force_without_a_restart(etcd: Etcd, watched: Watched) -> None:
    etcd.put("/autoglm/news/release/min_requests", "7")
    until(lambda: watched.config.settings.release.min_requests == 7)
    etcd.put("/autoglm/news/release/min_requests", "many")
    error = until(lambda: watched.alarms)[0]
    assert (error.code, watched.config.settings.release.min_requests) == ("config.wrong_value", 7)
    etcd.put("/autoglm/news/release/min_requests", "9")
    until(lambda: watched.config.settings.release.min_requests == 9)
    assert ["release.min_requests"] in watched.changes


def test_a_watch_goes_on_after_etcd_was_away(etcd: Etcd, watched: Watched) -> None:
    etcd.put("/autoglm/news/release/min_requests", "7")
    until(lambda: watched.config.settings.release.min_requests == 7)
    etcd.stop()
    until(lambda: watched.alarms)
    etcd.start()
    etcd.put("/autoglm/news/release/min_requests", "8")
    until(lambda: watched.config.settings.release.min_requests == 8)


def test_a_changed_file_is_in_force_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = project(tmp_path / "p")
    watched = Watched(folder)
    try:
        # The watcher's thread takes its time to begin; the first change may come before it.
        def changed() -> bool:
            project(folder, "release: {min_requests: 7}\n")
            time.sleep(0.05)
            return watched.config.settings.release.min_requests == 7

        until(changed)
        watched.alarms.clear()
        project(folder, "release: {min_requests: 8}\nserving: {port: 9999}\n")
        error = until(lambda: watched.alarms)[0]
        assert error.code == "config.not_reloadable"
        assert "serving.port" in error.message
        assert watched.config.settings.release.min_requests == 7, "nothing of it was taken"
        watched.alarms.clear()
        project(folder, "release: {min_requests: [\n")
        assert until(lambda: watched.alarms)[0].code == "config.broken"
        staging = folder / "new"
        staging.write_text(MINIMAL + "release: {min_requests: 11}\n")
        staging.replace(folder / "autoglm.yaml")  # as editors do
        until(lambda: watched.config.settings.release.min_requests == 11)
    finally:
        watched.live.stop()


# --- dialects --------------------------------------------------------------------------------


class Recorded(ThreadingHTTPServer):
    """Gives the answers of `answers` by path (without the query); keeps what it was asked."""

    answers: dict[str, tuple[int, dict[str, str], bytes]]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Replying)
        self.answers, self.asked = {}, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Replying(BaseHTTPRequestHandler):
    server: Recorded

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        status, headers, content = self.server.answers.get(
            self.path.partition("?")[0], (404, {}, b"")
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_arguments: Any) -> None:
        return None


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    server = Recorded()
    yield server
    server.shutdown()
    server.server_close()


def config_of(recorded: Recorded, kind: str, **more: Any) -> CentreConfig:
    quick = timedelta(milliseconds=20)
    return CentreConfig(kind=kind, url=recorded.url, poll_interval=quick, **more)


CONSUL = json.dumps(
    [
        {
            "LockIndex": 0,
            "Key": "autoglm/",
            "Flags": 0,
            "Value": None,
            "CreateIndex": 9,
            "ModifyIndex": 9,
        },
        {
            "LockIndex": 0,
            "Key": "autoglm/training/lr",
            "Flags": 0,
            "Value": "M2UtNA==",
            "CreateIndex": 12,
            "ModifyIndex": 31,
        },
    ]
).encode()
SPRING = json.dumps(
    {
        "name": "news", "profiles": ["prod"], "label": None, "version": "a1b2c3", "state": None,
        "propertySources": [
            {"name": "file:news-prod.yml", "source": {"training.lr": 0.0003}},
            {"name": "file:application.yml", "source": {"training.lr": 0.1, "release.steps[0]": 5}},
        ],
    }
).encode()  # fmt: skip


def test_consul_is_asked_for_a_prefix_and_watched_by_index(recorded: Recorded) -> None:
    recorded.answers["/v1/kv/autoglm/"] = (200, {"X-Consul-Index": "31"}, CONSUL)
    centre = consul(config_of(recorded, "consul", password="t0ken"), "default")
    assert centre.load() == ({"training.lr": "3e-4"}, "31")
    assert recorded.asked[0][2]["X-Consul-Token"] == "t0ken"
    changes = centre.watch("31")
    recorded.answers["/v1/kv/autoglm/"] = (200, {"X-Consul-Index": "32"}, CONSUL)
    assert next(changes) == "32"
    recorded.answers["/v1/kv/autoglm/"] = (200, {"X-Consul-Index": "33"}, CONSUL)
    assert next(changes) == "33"
    assert any("index=32" in path and "wait=30s" in path for _, path, _, _ in recorded.asked)
    centre.close()


def test_spring_config_gives_the_first_source_that_says_a_key(recorded: Recorded) -> None:
    recorded.answers["/news/prod"] = (200, {}, SPRING)
    centre = spring(config_of(recorded, "spring", prefix="news", user="u", password="p"), "prod")
    tree, revision = centre.load()
    assert tree == {"training.lr": 0.0003, "release.steps[0]": 5}
    assert revision.startswith("a1b2c3-")
    assert recorded.asked[0][2]["Authorization"] == "Basic dTpw"
    changes = centre.watch(revision)
    recorded.answers["/news/prod"] = (200, {}, SPRING.replace(b"0.0003", b"0.0004"))
    assert next(changes) != revision
    centre.close()


def test_nacos_gives_a_document_and_is_watched_by_its_digest(recorded: Recorded) -> None:
    recorded.answers["/nacos/v1/cs/configs"] = (
        200,
        {},
        b"training: {lr: 3e-4}\nlabels: {a.b: 1}\n",
    )
    recorded.answers["/nacos/v1/cs/configs/listener"] = (200, {}, b"")
    centre = nacos(config_of(recorded, "nacos", prefix="G/news.yaml"), "default")
    tree, revision = centre.load()
    assert tree == {"[training]": {"[lr]": 3e-4}, "[labels]": {"[a.b]": 1}}
    assert "dataId=news.yaml" in recorded.asked[0][1]
    assert "group=G" in recorded.asked[0][1]
    changes = centre.watch(revision)
    waiting = threading.Timer(
        0.05,
        lambda: recorded.answers.update({"/nacos/v1/cs/configs": (200, {}, b"training: {lr: 1}")}),
    )
    waiting.start()
    assert next(changes) != revision
    posted = [a for a in recorded.asked if a[0] == "POST"]
    assert posted
    assert revision in posted[0][3]
    centre.close()


@pytest.mark.parametrize("make", [consul, spring, nacos])
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((500, {}, b"broken"), "config.unreachable"),
        ((200, {}, b'[{"Key": "autoglm/a", "Va'), "config.remote_broken"),
        ((200, {}, b"a: [1,"), "config.remote_broken"),
    ],
)
def test_an_answer_that_is_not_whole_is_a_typed_error(
    recorded: Recorded, make: Any, answer: Any, code: str
) -> None:
    for path in ("/v1/kv/autoglm/", "/autoglm/default", "/nacos/v1/cs/configs"):
        recorded.answers[path] = answer
    with pytest.raises(ConfigError) as caught:
        make(config_of(recorded, make.__name__), "default").load()
    assert caught.value.code in {code, "config.broken"}


@pytest.mark.parametrize(
    "content", [b"not json", b'{"header": {}}', b'{"kvs": [{"key": "%%"}]}', b'{"header":{"revi']
)
def test_an_answer_of_etcd_that_is_not_whole_is_a_typed_error(
    recorded: Recorded, content: bytes
) -> None:
    recorded.answers["/v3/kv/range"] = (200, {}, content)
    centre = EtcdCentre(replace(config_of(recorded, "etcd"), prefix="/x"), "default")
    with pytest.raises(ConfigError) as caught:
        centre.load()
    assert caught.value.code == "config.remote_broken"
    assert recorded.url in caught.value.message
    centre.close()


def test_a_connection_that_breaks_off_is_a_typed_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def half() -> None:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"kvs"')
            connection.close()

        threading.Thread(target=half, daemon=True).start()
        with pytest.raises(ConfigError) as caught:
            EtcdCentre(CentreConfig(kind="etcd", url=url), "default").load()
    assert caught.value.code == "config.unreachable"
