"""Options that several commands share, in one spelling."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from autoglm.cli.output import command

if TYPE_CHECKING:
    from autoglm.project import Project

P = ParamSpec("P")
R = TypeVar("R")

Folder = Annotated[Path, typer.Argument(help="The project's folder.", show_default=False)]
FolderOption = Annotated[Path, typer.Option("--project", "-C", help="The project's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Profile = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Profile: autoglm.NAME.yaml on top, a state folder of its own. Also AUTOGLM_PROFILE.",
        show_default=False,
    ),
]
ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option("--config", metavar="FILE", help="One more file (YAML, .properties) on top."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a config key for this call."),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The layers that this call's options name."""

    profile: str = ""
    files: tuple[Path, ...] = ()
    assignments: tuple[str, ...] = ()


_chosen: ContextVar[Chosen] = ContextVar("chosen")


def project_command(function: Callable[P, R]) -> Callable[..., R]:
    """A command on a project: `--profile`, `--config` and `--set` are added to its options.

    Its body opens the project by `open_project`.
    """
    extra = {"profile": (Profile, ""), "config": (ConfigFiles, None), "set": (Assignments, None)}
    guarded = command(function)

    @functools.wraps(guarded)
    def wrapped(**options: Any) -> R:
        said = {name: options.pop(name, None) for name in extra}
        _chosen.set(
            Chosen(
                profile=said["profile"] or "",
                files=tuple(said["config"] or ()),
                assignments=tuple(said["set"] or ()),
            )
        )
        return guarded(**options)  # type: ignore[call-arg]

    # Evaluated here: typer would look for the names in this file.
    signature = inspect.signature(function, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in extra.items()
    ]
    signature = signature.replace(parameters=[*signature.parameters.values(), *more])
    wrapped.__signature__ = signature  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return wrapped


def open_project(folder: Path) -> Project:
    """The project in `folder` under this call's profile, files and assignments."""
    from autoglm.project import Project

    chosen = _chosen.get(Chosen())
    return Project(
        folder, profile=chosen.profile, files=chosen.files, assignments=chosen.assignments
    )
