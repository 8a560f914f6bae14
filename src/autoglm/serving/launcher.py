"""Starts the gateway as a child that ends with us, and starts it again where it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from autoglm.contracts.record import to_json
from autoglm.errors import ServingError
from autoglm.serving.config import ServingConfig

START_SECONDS = 120
SOCKETS = "autoglm-sockets-"


def socket_folder() -> Path:
    """A new folder for this process's Unix sockets, whose paths may have about 100 characters: the
    project's may be deeper. What processes left there that were killed is removed.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{SOCKETS}*"):
        pid = old.name.removeprefix(SOCKETS).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{SOCKETS}{os.getpid()}-"))


class GatewayProcess:
    """A living gateway: users at `address`, control at `admin_socket`."""

    def __init__(self, command: list[str], sockets: Path, logs: Path) -> None:
        self._command, self._sockets, self._logs = command, sockets, logs
        self.admin_socket = sockets / "admin.sock"
        self.address = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._changing = threading.Lock()

    @classmethod
    def start(
        cls,
        *,
        state: Path,
        project: str,
        config: ServingConfig,
        control_socket: Path | None,
        logs: Path,
    ) -> GatewayProcess:
        """Returns when it answers. Raises: ServingError serving.gateway_failed."""
        logs.mkdir(parents=True, exist_ok=True)
        sockets = socket_folder()
        command = [
            sys.executable, "-m", "autoglm.serving.gateway_main",
            "--project", project,
            "--state", str(state),
            "--sockets", str(sockets),
            "--logs", str(logs),
            "--config", json.dumps(to_json(config)),
            "--control", str(control_socket or ""),
        ]  # fmt: skip
        gateway = cls(command, sockets, logs)
        try:
            gateway._start(config.port)
        except BaseException:
            gateway.close()
            raise
        return gateway

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def restart_if_dead(self) -> None:
        """The same address and socket; routes come back from disk."""
        with self._changing:  # not while `close` ends it: it would be started again
            if self._process is not None and self._process.poll() is not None:
                assert self._process.stdin is not None
                self._process.stdin.close()
                self._start(int(self.address.rpartition(":")[2]))

    def close(self) -> None:
        """Drain, end, remove the sockets."""
        with self._changing:
            if self._process is not None:
                assert self._process.stdin is not None
                self._process.stdin.close()
                try:
                    self._process.wait(15)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
                self._process = None
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _start(self, port: int) -> None:
        told = self._sockets / "address"
        told.unlink(missing_ok=True)
        with (self._logs / "gateway.stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                [*self._command, "--port", str(port)],
                stdin=subprocess.PIPE,
                stdout=stderr,
                stderr=stderr,
                # Ctrl-C is the parent's to hear; the pipe tells this one.
                process_group=0,
            )
        deadline = time.monotonic() + START_SECONDS
        while not told.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self._logs / "gateway.stderr").read_text(errors="replace")[-300:].strip()
                raise ServingError(
                    f"the gateway does not come up. {tail}",
                    code="serving.gateway_failed",
                    next_step="Is the port taken? Set serving.port: 0 for a free one.",
                )
            time.sleep(0.02)
        self.address = told.read_text()
