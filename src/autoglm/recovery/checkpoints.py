"""Checkpoints of one piece of work: numbered folders, each whole or absent, with digests. No torch.

A folder holds `content.safetensors` and `manifest.json` {sha256, bytes, facts}; the rename commits.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm import fail_points
from autoglm.errors import CheckpointCorruptError
from autoglm.observability.logging import get_logger

CONTENT, MANIFEST = "content.safetensors", "manifest.json"
_before_commit = fail_points.declare(
    "checkpoint.before_commit", "a checkpoint is written and synced, but has no name yet"
)
_after_commit = fail_points.declare(
    "checkpoint.after_commit", "a checkpoint has its name, older ones are not removed yet"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    step: int
    content: Path
    facts: Mapping[str, Any]


class Checkpoints:
    """The newest `keep` of them stay, and fewer when they pass `max_bytes` (the newest always)."""

    def __init__(self, folder: Path, *, keep: int, max_bytes: int) -> None:
        self._folder, self._keep, self._max_bytes = folder, keep, max_bytes

    def save(self, step: int, write: Callable[[Path], None], facts: Mapping[str, Any]) -> None:
        """`write` puts the content at the path it is given. Durable when this returns."""
        self._folder.mkdir(parents=True, exist_ok=True)
        staging = self._folder / f".{step}.part"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        write(staging / CONTENT)
        size, sha256 = _measured(staging / CONTENT, sync=True)
        with (staging / MANIFEST).open("w", encoding="utf-8") as stream:
            json.dump({"sha256": sha256, "bytes": size, "facts": dict(facts)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        _before_commit()
        target = self._folder / str(step)
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
        _sync_folder(self._folder)
        _after_commit()
        self._prune()

    def newest(self) -> Checkpoint | None:
        """The newest whole one; a damaged one is skipped with a warning."""
        for step in reversed(self._steps()):
            try:
                return self._opened(step)
            except CheckpointCorruptError as error:
                get_logger().warning("checkpoint skipped", cause=error.message)
        return None

    def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _opened(self, step: int) -> Checkpoint:
        folder = self._folder / str(step)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            size, sha256 = _measured(folder / CONTENT)
            wanted = manifest["sha256"], manifest["bytes"], manifest["facts"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointCorruptError(
                f"{folder}: {error}.", next_step="Training goes on from the one before."
            ) from error
        if (sha256, size) != wanted[:2]:
            raise CheckpointCorruptError(
                f"{folder}: sha256 is {sha256}, the manifest says {wanted[0]}.",
                next_step="Training goes on from the one before.",
            )
        return Checkpoint(step=step, content=folder / CONTENT, facts=wanted[2])

    def _steps(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdigit())

    def _prune(self) -> None:
        kept_bytes = 0
        for count, step in enumerate(reversed(self._steps())):
            folder = self._folder / str(step)
            kept_bytes += sum(p.stat().st_size for p in folder.iterdir())
            if count and (count >= self._keep or kept_bytes > self._max_bytes):
                shutil.rmtree(folder, ignore_errors=True)


def _measured(path: Path, *, sync: bool = False) -> tuple[int, str]:
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if sync:
            os.fsync(stream.fileno())
        return stream.tell(), sha256


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
