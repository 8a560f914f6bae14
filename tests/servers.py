"""Database servers that tests start for themselves, as `nobody` when the tests run as root."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNPACKED = Path(sys.prefix) / "servers"  # where tests/run.py puts Debian's packages


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str, *folders: str) -> Path | None:
    """The newest of this name in these folders of the machine or of what was unpacked."""
    for root in (Path("/"), UNPACKED):
        for folder in folders:
            found = sorted(root.glob(f"{folder}/{name}"))
            if found:
                return found[-1]
    there = shutil.which(name)
    return Path(there) if there else None


class Server:
    """A process with a data folder of its own, outside of pytest's (which only root may enter)."""

    gentle = signal.SIGTERM
    refuses_root = True

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="autoglm-server-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._as = {"user": "nobody", "group": "nogroup", "extra_groups": []} if self.refuses_root and not os.geteuid() else {}  # fmt: skip
        if self._as:
            shutil.chown(self.folder, "nobody", "nogroup")

    def environment(self) -> dict[str, str]:
        libraries = UNPACKED / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"
        path = os.pathsep.join(filter(None, [os.environ.get("LD_LIBRARY_PATH"), str(libraries)]))
        return {**os.environ, "LD_LIBRARY_PATH": path, "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}  # fmt: skip

    def do(self, *command: str | Path, text: str = "") -> None:
        done = subprocess.run(
            command, input=text.encode(), env=self.environment(), cwd=self.folder,
            capture_output=True, check=False, **self._as,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout + done.stderr).decode()[-2000:]

    def launch(self, *command: str | Path) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.environment(), cwd=self.folder, stdout=log, stderr=log, **self._as
            )

    def is_dead(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    def stop(self, how: int | None = None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how or self.gentle)
            self.process.wait(60)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Postgres(Server):
    """PostgreSQL with logical replication."""

    gentle = signal.SIGINT  # SIGTERM would wait for every client

    @staticmethod
    def initdb() -> Path | None:
        return program("initdb", "usr/lib/postgresql/*/bin")

    def __init__(self) -> None:
        super().__init__()
        initdb = self.initdb()
        assert initdb is not None
        self._bin = initdb.parent
        self.do(initdb, "-D", "data", "-U", "test", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://test@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
            "wal_level": "logical", "fsync": "off", "max_wal_size": "64MB", "min_wal_size": "32MB",
            "checkpoint_timeout": "30s", "autovacuum": "off", "shared_buffers": "64MB",
        }  # fmt: skip
        said = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self.launch(self._bin / "postgres", "-D", "data", *said)
        until(self._answers)

    def _answers(self) -> bool:
        import psycopg

        assert not self.is_dead(), self.log()
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def connect(self) -> Any:
        """A connection of its own that commits each statement."""
        import psycopg

        return psycopg.connect(self.url, autocommit=True)


class MariaDb(Server):
    """MariaDB with a row-based binary log."""

    @staticmethod
    def server() -> Path | None:
        return program("mariadbd", "usr/sbin")

    def __init__(self) -> None:
        super().__init__()
        server = self.server()
        assert server is not None
        self._server = server
        self._common = ["--no-defaults", f"--basedir={server.parent.parent}", f"--datadir={self.folder / 'data'}"]  # fmt: skip
        self.do(
            server.parent.parent / "bin" / "mariadb-install-db", *self._common,
            "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve",
        )  # fmt: skip
        self.start()

    @property
    def url(self) -> str:
        return f"mysql://root@127.0.0.1:{self.port}/app"

    def start(self, *more: str) -> None:
        self.launch(
            self._server, *self._common, f"--port={self.port}", "--bind-address=127.0.0.1",
            f"--socket={self.folder / 's'}", "--server-id=1", "--log-bin=log", "--binlog-format=ROW",
            "--binlog-row-metadata=FULL", "--binlog-row-image=FULL", "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M", *more,
        )  # fmt: skip
        until(self._answers)
        with self.connect("") as connection, connection.cursor() as cursor:
            cursor.execute("create database if not exists app character set utf8mb4")

    def _answers(self) -> bool:
        import pymysql

        assert not self.is_dead(), self.log()
        try:
            self.connect("").close()
        except pymysql.OperationalError:
            return False
        return True

    def connect(self, database: str = "app") -> Any:
        import pymysql

        return pymysql.connect(
            host="127.0.0.1", port=self.port, user="root", database=database or None,
            autocommit=True, charset="utf8mb4",
        )  # fmt: skip
