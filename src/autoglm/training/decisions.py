"""What was decided by measuring: measured once per run, read on resume."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoglm.recovery.file_lock import alone


class Decisions:
    """A JSON file of one run; a run that is resumed on another day decides as it did."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def decided(self, name: str, measure: Callable[[], Any]) -> Any:
        """The value under `name`, a JSON document; measured and kept when there is none. Of several
        processes one measures and the others wait.
        """
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
        return self._path.with_name(f".{self._path.name}.{name}lock")

    def _write(self, known: Mapping[str, Any]) -> None:
        staging = self._path.with_name(f".{self._path.name}.part")
        with staging.open("w", encoding="utf-8") as stream:
            json.dump(known, stream, indent=1, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        staging.replace(self._path)

    def _read(self) -> dict[str, Any]:
        try:
            known: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known
