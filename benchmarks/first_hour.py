"""What a stranger meets in the first hour: `--help`, `make run`, an idle `up`.

`python -m benchmarks.first_hour [--quick] [--json]`; `--quick` leaves `make run` out. Peak memory
is the largest sum of PSS over the process tree, sampled twice a second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

TARGETS = {
    "help_cpu_seconds": 0.4,
    "run_minutes": 5.0,
    "run_peak_gib": 2.0,
    "idle_core_percent": 3.0,
    "idle_control_pss_mib": 200.0,
}
ROOT = Path(__file__).resolve().parents[1]


def help_cpu_seconds() -> float:
    """Median user + system seconds of five calls."""
    found = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "autoglm.cli", "--help"], capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(found)


def tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def pss_bytes(processes: list[psutil.Process]) -> int:
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


def whole_run(project: Path) -> dict[str, float]:
    started, peak = time.monotonic(), 0
    command = [sys.executable, str(ROOT / "examples" / "news" / "news.py"), str(project)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while child.poll() is None:
        try:
            peak = max(peak, pss_bytes(tree(child.pid)))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.5)
    if child.wait() != 0:
        raise SystemExit("examples/news/news.py failed")
    return {"run_minutes": (time.monotonic() - started) / 60, "run_peak_gib": peak / 2**30}


def idle(project: Path) -> dict[str, float]:
    """CPU share of all processes over 30 s, and control's PSS, after 10 s of settling."""
    command = [sys.executable, "-m", "autoglm.cli", "up", str(project), "--json"]
    child = subprocess.Popen([*command, "--set", "serving.port=0"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(10)
    processes = tree(child.pid)
    before = sum(sum(p.cpu_times()[:2]) for p in processes)
    time.sleep(30)
    used = sum(sum(p.cpu_times()[:2]) for p in processes) - before
    control = [p for p in processes if "autoglm.processes.control" in " ".join(p.cmdline())]
    found = {
        "idle_core_percent": 100 * used / 30,
        "idle_control_pss_mib": pss_bytes(control) / 2**20,
    }
    child.terminate()
    child.wait()
    child.stdout.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--project", type=Path, help="a project that `make run` made")
    arguments = parser.parse_args()
    ratios: dict[str, Any] = {"help_cpu_seconds": help_cpu_seconds()}
    with tempfile.TemporaryDirectory() as folder:
        project = arguments.project or Path(folder) / "demo"
        if not arguments.quick:
            ratios |= whole_run(project)
        if project.exists():
            ratios |= idle(project)
    ok = all(value <= TARGETS[name] for name, value in ratios.items())
    if not arguments.json:
        print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        for name, value in ratios.items():
            print(f"  {name:<22} {value:8.2f}   target {TARGETS[name]:g}")
    rounded = {name: round(value, 3) for name, value in ratios.items()}
    print(json.dumps({"benchmark": "first_hour", "ratios": rounded, "targets": TARGETS, "ok": ok}))


if __name__ == "__main__":
    main()
