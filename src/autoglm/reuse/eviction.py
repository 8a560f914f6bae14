"""Which states of frozen layers go when the disk's share is full.

    FOLDER/KEY/about.json   CPU-seconds that the states cost, how often they were asked for, when
    FOLDER/KEY/.lock        held by each process that has them in use

The names of files are here, so that a process that computes nothing can make room.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from autoglm.recovery import file_lock

ABOUT, LOCK = "about.json", ".lock"
# In the folder of what is kept.
PREFIX = "prefix"


def evict(folder: Path, max_bytes: int) -> list[str]:
    """Delete what saves the fewest CPU-seconds per byte until the others fit; returns its keys.
    What a process has in use never goes.
    """
    sizes = {path: _size(path) for path in folder.glob("*/")}
    left, gone = sum(sizes.values()), []
    for path in sorted(sizes, key=lambda path: _worth(path, sizes[path])):
        if left <= max_bytes:
            break
        with file_lock.alone_if_free(path / LOCK) as is_free:
            if is_free:
                shutil.rmtree(path, ignore_errors=True)
                left -= sizes[path]
                gone.append(path.name)
    return gone


def about(folder: Path) -> dict[str, Any]:
    """What is noted of a key; nothing where that is damaged."""
    try:
        known: dict[str, Any] = json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


def _worth(folder: Path, num_bytes: int) -> tuple[float, float]:
    """CPU-seconds saved per byte; of equals the one that was used last is worth more."""
    noted = about(folder)
    saved = noted.get("cpu_seconds", 0.0) * noted.get("uses", 0)
    return saved / max(1, num_bytes), noted.get("used_at", 0.0)
