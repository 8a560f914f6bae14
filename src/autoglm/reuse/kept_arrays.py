"""Arrays that cost something to make, kept for later runs.

    FOLDER/KEY.SHA.safetensors

KEY names what they were made of, SHA the content: a damaged file is a miss.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from autoglm.observability.logging import get_logger

# The files used last; of a project's dataset versions and models the last few are asked again.
KEPT = 8
# A file in the making, and the seconds after which nobody is at it any more.
PART, ABANDONED = ".part", 3600


def read_arrays(folder: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """None for a miss; what is damaged is dropped, and the log says so."""
    for path in folder.glob(f"{key}.*.safetensors"):
        if (arrays := _read(path)) is not None:
            return arrays
    return None


def keep_arrays(folder: Path, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """In place of what was kept by that name. Without room in the folder they are not, with a line
    in the log.
    """
    from safetensors.numpy import save

    content = save(dict(arrays))
    path = folder / f"{key}.{hashlib.sha256(content).hexdigest()}.safetensors"
    staging = folder / f".{uuid.uuid4().hex}{PART}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(content)
        staging.rename(path)
    except OSError as error:
        get_logger().warning("arrays are not kept", folder=folder.name, cause=str(error))
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)
        return
    with contextlib.suppress(OSError):  # another process may have taken one away
        _trim(folder, path, key)


def _trim(folder: Path, newest: Path, key: str) -> None:
    """Others of that name, the oldest of all, and what a killed process left half-written."""
    others = [path for path in folder.glob("*.safetensors") if path != newest]
    same = [path for path in others if path.name.startswith(f"{key}.")]
    rest = sorted(set(others) - set(same), key=lambda path: path.stat().st_mtime, reverse=True)
    long_ago = time.time() - ABANDONED
    parts = [path for path in folder.glob(f".*{PART}") if path.stat().st_mtime < long_ago]
    for path in [*same, *rest[KEPT - 1 :], *parts]:
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, NDArray[Any]] | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.name.split(".")[1]:
            raise ValueError("its content is not what its name says")
        arrays: dict[str, NDArray[Any]] = load(content)
        os.utime(path)
    except (OSError, ValueError, SafetensorError) as error:
        get_logger().warning("kept arrays dropped", file=path.name, cause=str(error))
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return arrays
