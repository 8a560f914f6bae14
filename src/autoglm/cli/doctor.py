"""`autoglm doctor`: what this machine has, what is wrong, what to do."""

from __future__ import annotations

import platform
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from autoglm.cli.options import AsJson, Folder, open_project, project_command
from autoglm.cli.output import print_json, print_table, size
from autoglm.cores import cores

if TYPE_CHECKING:
    from autoglm.project import Project

PACKAGES = ("torch", "transformers", "optuna", "deltalake", "dbos", "onnxruntime", "pyarrow")


@project_command
def doctor(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Check the machine and, in a project, its configuration, backbone, source and state.

    Example: autoglm doctor news
    """
    checks = [*_machine(), *_packages()]
    if (folder / "autoglm.yaml").exists():
        checks += _project(folder)
    if as_json:
        print_json({"checks": checks, "ok": all(c["ok"] for c in checks)})
    else:
        print_table(
            ("", "check", "found"),
            [("ok" if c["ok"] else "WRONG", c["check"], c["found"]) for c in checks],
        )
        for check in checks:
            if not check["ok"] and check["next_step"]:
                typer.echo(f"next: {check['next_step']}")
    if not all(c["ok"] for c in checks):
        raise typer.Exit(1)


def _check(name: str, found: object, ok: bool = True, next_step: str = "") -> dict[str, Any]:
    return {"check": name, "found": str(found), "ok": ok, "next_step": next_step}


def _machine() -> Iterator[dict[str, Any]]:
    is_new = sys.version_info >= (3, 11)
    yield _check("python", platform.python_version(), is_new, "Use Python 3.11 or newer.")
    is_windows = platform.system() == "Windows"
    yield _check("system", platform.platform(), not is_windows, "On Windows use WSL2.")
    yield _check("cores", cores())
    free = shutil.disk_usage(Path.cwd()).free
    yield _check("disk", f"{size(free)} free", free > 2 * 10**9, "Free at least 2 GB.")
    yield _check("sqlite", sqlite3.sqlite_version, sqlite3.sqlite_version_info >= (3, 35))


def _packages() -> Iterator[dict[str, Any]]:
    for name in PACKAGES:
        try:
            yield _check(name, version(name))
        except PackageNotFoundError:
            yield _check(name, "not installed", False, "pip install -r requirements.txt")


def _project(folder: Path) -> Iterator[dict[str, Any]]:
    from autoglm.errors import AutoGLMError
    from autoglm.modeling.backbone_ref import resolve_backbone
    from autoglm.modeling.backbones.own import OWN

    try:
        project = open_project(folder)
        yield _check("autoglm.yaml", "valid")
    except AutoGLMError as error:
        yield _check("autoglm.yaml", error.message, False, error.next_step)
        return
    settings = project.settings
    try:
        if settings.model.backbone not in OWN:
            resolve_backbone(settings.model.backbone, project.folder)
        yield _check("backbone", settings.model.backbone)
    except AutoGLMError as error:
        yield _check("backbone", error.message, False, error.next_step)
    try:
        yield _check("source", _source(project))
    except AutoGLMError as error:
        yield _check("source", error.message, False, error.next_step)
    owner = project.owner()
    yield _check("owner", f"pid {owner.pid} ({owner.what})" if owner else "nobody")


def _source(project: Project) -> str:
    """Read a little of it. Raises: SourceError, DataError."""
    from autoglm.loop.change_to_dataset import open_source
    from autoglm.streaming.file_import import inspect_source
    from autoglm.streaming.row_key import RowKey

    data = project.settings.data
    if data.source.kind != "sql":
        source = open_source(project)
        found = source.status() if hasattr(source, "status") else {}
        return ", ".join([source.name, *(f"{k} {v}" for k, v in found.items() if v != "")])
    for column in RowKey.of(data.source.key).columns:
        inspect_source(
            data.source.url,
            data.source.table,
            project.folder,
            text=data.input_column,
            label=data.answer_column,
            task=project.settings.model.task,
            key=column,
            cursor=data.source.cursor or None,
        )
    return f"{data.source.table} can be read"
