"""What was decided by measuring: measured once per run, read on resume."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Decisions:
    """A JSON file of one run; a run that is resumed on another day decides as it did."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def decided(self, name: str, measure: Callable[[], Any]) -> Any:
        """The value under `name`, a JSON document; measured and kept when there is none."""
        known = self._read()
        if name not in known:
            known[name] = measure()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            staging = self._path.with_name(f".{self._path.name}.part")
            with staging.open("w", encoding="utf-8") as stream:
                json.dump(known, stream, indent=1, sort_keys=True)
                stream.flush()
                os.fsync(stream.fileno())
            staging.replace(self._path)
        return known[name]

    def _read(self) -> dict[str, Any]:
        try:
            known: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known
