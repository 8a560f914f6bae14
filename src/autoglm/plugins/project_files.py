"""A project's own Python files (`imports:`): read once per run, kept with it, run from there."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from autoglm.config.centre import private_folder
from autoglm.contracts.run_spec import ProjectFile, RunSpec
from autoglm.errors import PluginError
from autoglm.plugins import registry

MAX_BYTES = 1_000_000
# What a project's file is a module of, while it runs.
PACKAGE = "autoglm_imports"
_executed: dict[str, str] = {}


def read_files(folder: Path, names: Sequence[str]) -> tuple[ProjectFile, ...]:
    """The files as they are now. Raises: PluginError plugin.import_missing | import_outside."""
    found = []
    for name in names:
        path = (folder / name.replace("\0", "")).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise _unreadable(f"{name} lies outside of the project", "plugin.import_outside")
        try:
            data = path.read_bytes()
            source = data[: MAX_BYTES + 1].decode("utf-8")
        except (OSError, ValueError) as error:
            raise _unreadable(f"{name} cannot be read: {error}") from error
        if len(data) > MAX_BYTES:
            raise _unreadable(f"{name} is too large, more than {MAX_BYTES:,} bytes")
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        found.append(ProjectFile(name=name, digest=digest, source=source))
    return tuple(found)


def _unreadable(problem: str, code: str = "plugin.import_missing") -> PluginError:
    return PluginError(
        f"imports: {problem}.",
        code=code,
        next_step="Name Python files of the project's folder, by their path in it.",
        exit_code=2,  # the configuration is wrong, no work was tried
    )


def open_parts(spec: RunSpec) -> None:
    """Make known what the run may use: its allow-list, and its own files as they were when it was
    admitted. Every process that works for a run calls this before it asks for a part.
    """
    registry.allow(tuple(spec.config["plugins"]["allow"]))
    execute(spec.imports, Path(spec.folder) / "code")


def execute(files: Sequence[ProjectFile], folder: Path) -> None:
    """Write the files to `folder` and import them from there; what they register counts from now.

    A file that was executed with the same digest is left alone. Raises: PluginError plugin.broken
    with file and line.
    """
    if not files:
        return
    private_folder(folder.parent)
    for file in files:
        path = folder / file.name
        if not path.exists() or path.read_text(encoding="utf-8") != file.source:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.source, encoding="utf-8")
    place = str(folder)
    sys.path.insert(0, place)
    # Compiled code is taken for a file of the same second and size, whatever it says.
    was, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        for file in files:
            if _executed.get(file.name) != file.digest:
                _execute(file, folder / file.name)
                _executed[file.name] = file.digest
    finally:
        sys.dont_write_bytecode = was
        sys.path.remove(place)


def file_of(module: str) -> str:
    """The project's file that runs as `module`, from a copy; empty of other modules."""
    _, inside, name = module.partition(f"{PACKAGE}.")
    return f"{name.replace('.', '/')}.py" if inside and module.startswith(PACKAGE) else ""


def _execute(file: ProjectFile, path: Path) -> None:
    module_name = f"{PACKAGE}." + file.name.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    with registry.registering_from(file.name):
        try:
            spec.loader.exec_module(module)
        except (PluginError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit too: a file that leaves is a broken one
            frames = [
                f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
            ]
            line = frames[-1].lineno if frames else getattr(error, "lineno", "?")
            raise PluginError(
                f"{file.name}:{line}: {type(error).__name__}: {error}.",
                code="plugin.broken",
                next_step="Correct the file; it counts from the next run.",
            ) from error
