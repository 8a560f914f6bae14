"""By what a run differs from the product as it was shipped.

default   nothing but configuration
project   Python files of the project (`imports:`)
source    files of this very package that were changed where it is installed
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def tuning_of(project_files: int) -> str:
    """The strongest of the three."""
    if changed_files():
        return "source"
    return "project" if project_files else "default"


@cache
def changed_files() -> Mapping[str, str]:
    """Changed, added and missing files of the package → SHA-256 as they are (`""`: missing).

    Told by the installed package's own list of digests; of an editable install by git, and where
    neither knows, nothing is told.
    """
    try:
        return changed_in(PACKAGE, distribution("open-autoglm"))
    except PackageNotFoundError:
        return {}


def changed_in(package: Path, installed: Distribution) -> Mapping[str, str]:
    """See `changed_files`."""
    shipped = {
        Path(str(installed.locate_file(file))): file.hash.value
        for file in installed.files or ()
        if file.hash is not None and file.parts[:1] == (package.name,)
    }
    if not shipped:
        return _changed_since_commit(package)
    there = {p for p in package.rglob("*.py") if "__pycache__" not in p.parts}
    found = {}
    for path in sorted(there | {p for p in shipped if p.suffix == ".py"}):
        content = path.read_bytes() if path in there else None
        if content is None or shipped.get(path) != _as_recorded(content):
            found[str(path.relative_to(package))] = _sha256(content)
    return found


def _changed_since_commit(package: Path) -> Mapping[str, str]:
    command = ["git", "status", "--porcelain", "--no-renames", "--untracked-files=all", "-z", "."]
    try:
        done = subprocess.run(
            command, cwd=package, capture_output=True, text=True, timeout=10, check=True
        )
        top = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"],
            cwd=package, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {}
    for line in filter(None, done.stdout.split("\0")):
        path = Path(top.stdout.strip()) / line[3:]
        if path.suffix == ".py":
            content = path.read_bytes() if path.is_file() else None
            found[str(path.relative_to(package))] = _sha256(content)
    return found


def _sha256(content: bytes | None) -> str:
    return "" if content is None else hashlib.sha256(content).hexdigest()


def _as_recorded(content: bytes) -> str:
    """As a wheel's RECORD writes it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
