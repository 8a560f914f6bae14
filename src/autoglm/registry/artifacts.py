"""Folders named by their content: digest, verify, put in place whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from autoglm.contracts.record import digest
from autoglm.errors import StorageError

MANIFEST = "manifest.json"
# The graph is derived from the weights and its bytes depend on the exporter's version.
DERIVED = frozenset({"model.onnx", "model.onnx.data", MANIFEST, "lineage.json", "README.md"})


def file_digests(folder: Path) -> dict[str, str]:
    """Relative name → SHA-256 of every file below `folder`, sorted."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return {name: _sha256(folder / name) for name in names if name != MANIFEST}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def model_digest(files: dict[str, str]) -> str:
    """Digest of weights, tokenizer and cleaned config (not of what is derived from them)."""
    return digest({name: sha for name, sha in files.items() if name not in DERIVED})


def place(source: Path, target: Path, files: dict[str, str]) -> None:
    """Copy `source` to `target` with its manifest; the rename is the commit.

    Raises: StorageError storage.full or storage.failed.
    """
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(source, staging)
        (staging / MANIFEST).write_text(json.dumps({"files": files}, indent=1, sort_keys=True))
        for path in _tree(staging):
            _fsync(path)
        staging.rename(target)
        _fsync(target.parent)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if target.exists():  # somebody placed the same bytes first
            return
        raise StorageError(
            f"{target}: {error.strerror}.",
            code="storage.full",
            next_step="Free disk space and resume.",
        ) from error


def verify(folder: Path) -> None:
    """Raises: StorageError storage.corrupt when a file is not what the manifest says."""
    try:
        wanted = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"{folder} has no readable manifest.", code="storage.corrupt") from error
    actual = file_digests(folder)
    for name, sha in wanted.items():
        if name != "lineage.json" and actual.get(name) != sha:
            raise StorageError(
                f"{folder / name}: sha256 is {actual.get(name, 'absent')}, not {sha}.",
                code="storage.corrupt",
                next_step="Restore the folder, or run again to make a new version.",
            )


def _tree(folder: Path) -> Iterator[Path]:
    yield from folder.rglob("*")
    yield folder


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
