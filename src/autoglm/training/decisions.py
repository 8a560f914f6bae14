"""What was decided by measuring: measured once per run, read on resume; of the machine, once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from autoglm.recovery.file_lock import alone

# Beside the stages that it decides on, in a project's folder of work.
MACHINE = "machine.json"


class Decisions:
    """A JSON file of one run; a run that is resumed on another day decides as it did. `machine`:
    the file of what was measured of this machine, which all runs of the project share.
    """

    def __init__(self, path: Path, *, machine: Path | None = None) -> None:
        self._path = path
        self._machine = None if machine is None else Decisions(machine)

    def decided(self, name: str, measure: Callable[[], Any], *, of_machine: str = "") -> Any:
        """The value under `name`, a JSON document; measured and kept when there is none. Of several
        processes one measures and the others wait. What is so of a machine is under the name
        `of_machine` measured once for all runs: two that measured on a busy machine and on an idle
        one would have no stage in common. Delete that file, and the next run measures anew.
        """
        if of_machine and self._machine is not None:
            return self.decided(name, partial(self._machine.decided, of_machine, measure))
        known = self._read()
        if name in known:
            return known[name]
        # A lock per name: a probe trains, and training decides on its precision.
        with alone(self._lock(f"{name}.")):
            known = self._read()
            if name not in known:
                measured = measure()
                with alone(self._lock("")):
                    known = {**self._read(), name: measured}
                    self._write(known)
        return known[name]

    def _lock(self, name: str) -> Path:
        return self._path.with_name(f".{self._path.name}.{_in_a_name(name)}lock")

    def _write(self, known: Mapping[str, Any]) -> None:
        staging = self._path.with_name(f".{self._path.name}.part")
        with staging.open("w", encoding="utf-8") as stream:
            json.dump(known, stream, indent=1, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        staging.replace(self._path)

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def _in_a_name(name: str) -> str:
    """Names of processors hold what a file's name cannot."""
    return re.sub(r"[^\w. ()-]", "_", name)
