"""The process that converts one file: `python -m …backbones.convert FILE FOLDER CONVERTER`.

A process of its own, so that whoever asks (launcher, command line) stays without torch and gets
back the memory. FOLDER is there whole or not at all: the rename is the commit.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoglm import fail_points
from autoglm.errors import AutoGLMError, StorageError, from_system
from autoglm.modeling.backbones.weights_file import sha256
from autoglm.plugins import registry

FACTS = "autoglm.json"
LOCK = ".lock"
STAGING = ".{}.converting"

before_rename = fail_points.declare(
    "weights.before_rename", "converted and on disk, not yet under its name"
)


def is_whole(folder: Path) -> bool:
    """All files are there with the sizes they were written with.

    Caches are swept by age and by hand: a folder may have lost a part.
    """
    try:
        sizes = json.loads((folder / FACTS).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def convert(source: Path, target: Path, converter: str) -> None:
    """Fill `target` by the converter of that name, unless somebody did. Waits for whoever converts.

    Raises: ModelError (see the converter), StorageError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.parent):
        if is_whole(target):
            return
        _sweep(target)
        staging = target.with_name(STAGING.format(target.name))
        staging.mkdir()
        try:
            facts = registry.get("converter", converter)().convert(source, staging)
            origin = {"converter": converter, "source": source.name, "sha256": sha256(source)}
            files = {
                str(path.relative_to(staging)): path.stat().st_size
                for path in sorted(staging.rglob("*"))
                if path.is_file()
            }
            document = {**facts, **origin, "files": files}
            (staging / FACTS).write_text(json.dumps(document, indent=1), encoding="utf-8")
            for path in (*staging.rglob("*"), staging):
                _fsync(path)
            before_rename()
            staging.rename(target)
            _fsync(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """One conversion at a time in `cache`; the lock ends with its process."""
    # A file, not the folder itself: a home on NFS locks only what is open for writing.
    handle = os.open(cache / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sweep(target: Path) -> None:
    """Under the lock nobody converts: what has a staging name was left by the dead."""
    for left in (*target.parent.glob(STAGING.format("*")), target):
        shutil.rmtree(left, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def main(arguments: list[str]) -> int:
    """Exit code 0, or 1 with the error as one JSON line on standard output."""
    source, target, converter = arguments
    try:
        convert(Path(source), Path(target), converter)
    except (AutoGLMError, OSError) as cause:
        error = cause if isinstance(cause, AutoGLMError) else from_system(cause)
        error = error or StorageError(f"{target}: {cause}.")
        print(json.dumps({"kind": type(error).__name__, **error.to_json()}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
