"""`autoglm up`: starts the processes in order, restarts what dies, stops them in reverse."""

from __future__ import annotations

import ipaddress
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from autoglm.errors import ConfigError, ServingError
from autoglm.observability import logging as logs
from autoglm.project import Project
from autoglm.serving.launcher import GatewayProcess, socket_folder

GRACE_SECONDS = 10.0
CHECK_SECONDS = 1.0
MAX_BACK_OFF_SECONDS = 30.0
# A process that lived this long is healthy: its next death is restarted at once.
HEALTHY_SECONDS = 60.0


class Supervisor:
    """Holds the project's lock for as long as it runs; its children end when it ends."""

    def __init__(self, project: Project, *, on_ready: Callable[[str], None]) -> None:
        self._project, self._on_ready = project, on_ready
        self._stop = threading.Event()
        self._children: dict[str, Child] = {}
        self._logger = logs.get_logger()

    def run(self) -> None:
        """Block until SIGINT or SIGTERM. Raises: OwnerError, ConfigError, ServingError."""
        project = self._project
        _refuse_open_network(project.settings.serving.host)
        with project.own("autoglm up"):
            logs.configure("supervisor", project=project.name, folder=project.logs)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda _n, _f: self._stop.set())
            sockets = socket_folder()
            try:
                self._supervise(sockets)
            finally:
                for child in reversed(self._children.values()):
                    child.stop()
                shutil.rmtree(sockets, ignore_errors=True)

    def _supervise(self, sockets: Path) -> None:
        project = self._project
        project.engine.dispose()  # migrated; from here on control alone writes it
        control_socket = sockets / "control.sock"
        gateway = GatewayProcess.start(
            state=project.state,
            project=project.name,
            config=project.settings.serving,
            control_socket=control_socket,
            logs=project.logs,
        )
        try:
            self._start_children(gateway, control_socket)
            self._wait_for(control_socket)
            project.announce("autoglm up", gateway.address)
            self._on_ready(gateway.address)
            while not self._stop.wait(CHECK_SECONDS):
                for child in self._children.values():
                    child.check()
                gateway.restart_if_dead()
        finally:
            for child in reversed(self._children.values()):
                child.stop()
            gateway.close()

    def _start_children(self, gateway: GatewayProcess, control_socket: Path) -> None:
        common = self._project.arguments
        control = [
            *("--socket", str(control_socket)),
            *("--address", gateway.address),
            *("--admin-socket", str(gateway.admin_socket)),
        ]
        self._children = {
            "control": Child("control", [*common, *control], self._project),
            "stream": Child("stream", common, self._project),
        }
        for child in self._children.values():
            child.start()

    def _wait_for(self, control_socket: Path) -> None:
        deadline = time.monotonic() + 60
        while not control_socket.exists():
            if self._stop.wait(0.05):
                return
            self._children["control"].check()
            if time.monotonic() > deadline:
                raise ServingError(
                    "the control process does not come up.",
                    code="serving.control_unavailable",
                    next_step=f"See {self._project.logs / 'control.jsonl'}.",
                )


class Child:
    """A process of ours that holds our pipe as its standard input."""

    def __init__(self, name: str, arguments: list[str], project: Project) -> None:
        self._name, self._project = name, project
        self._command = [sys.executable, "-m", f"autoglm.processes.{name}", *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._deaths = 0
        self._not_before = 0.0

    def start(self) -> None:
        self._started = time.monotonic()
        with (self._project.logs / f"{self._name}.stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=stderr, stderr=stderr
            )

    def check(self) -> None:
        """Start it again if it died, ever more slowly when it keeps dying."""
        if self._process is None or self._process.poll() is None:
            return
        now = time.monotonic()
        if self._not_before == 0.0:
            lived = now - self._started
            self._deaths = 1 if lived > HEALTHY_SECONDS else self._deaths + 1
            self._not_before = now + min(2.0 ** (self._deaths - 1) - 1, MAX_BACK_OFF_SECONDS)
            logs.get_logger().error(
                "process died", process=self._name, exit_code=self._process.returncode
            )
        if now >= self._not_before:
            self._not_before = 0.0
            assert self._process.stdin is not None
            self._process.stdin.close()
            self.start()

    def stop(self) -> None:
        """Close its pipe: it leaves in order. After the grace it is killed."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _refuse_open_network(host: str) -> None:
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback:
        raise ConfigError(
            f"serving.host = {host!r} is not a loopback address, and there is no token.",
            code="config.open_network",
            next_step="Use 127.0.0.1, or put a proxy that authenticates in front of it.",
        )
