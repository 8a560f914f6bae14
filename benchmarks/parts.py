"""A long benchmark in parts: each in a process of its own, its result kept at once.

A result is a JSON file with what was measured, the command, the machine, versions and seconds. What
is there is not measured again, so a benchmark that was stopped goes on when it is called again.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

VERSIONS = ("torch", "transformers", "tokenizers", "schedulefree")


def machine() -> dict[str, Any]:
    """What figures depend on. No name of a host and no path."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
    }


def run_parts(
    module: str, folder: Path, parts: Iterable[str], options: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Results by part; `python -m MODULE --part NAME OPTIONS` prints one as its last line."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        path = folder / f"{part}.json"
        if not path.exists():
            kept = _measured([sys.executable, "-m", module, "--part", part, *options])
            _say(part, kept)
            write(path, kept)
        found[part] = json.loads(path.read_text(encoding="utf-8"))
    return found


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by part, of all that lie in `folder`."""
    files = sorted(folder.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def _measured(command: list[str]) -> dict[str, Any]:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        command,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])} ended with code {done.returncode}.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "result": json.loads(done.stdout.splitlines()[-1]),
        "command": " ".join(["python", *command[1:]]),
        "machine": machine(),
        "cpu_seconds": round(cpu, 1),
        "wall_seconds": round(time.monotonic() - started, 1),
        "load": round(os.getloadavg()[0], 1),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _say(part: str, kept: dict[str, Any]) -> None:
    numbers = {k: v for k, v in kept["result"].items() if isinstance(v, (int, float))}
    shown = " ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    seconds = f"{kept['wall_seconds']:.0f} s, {kept['cpu_seconds']:.0f} CPU-s"
    print(f"  {part:<32} {shown}  ({seconds})", flush=True)


def write(path: Path, document: Any) -> None:
    staging = path.with_name(f".{path.name}.part")
    staging.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    staging.replace(path)
