"""`autoglm gc`: files that nothing needs any more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoglm.cli.options import AsJson, Folder, open_project, project_command
from autoglm.cli.output import print_json, size


@project_command
def gc(
    folder: Folder = Path(),
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete table files that no kept version reads, model folders beyond the kept ones, and what
    the trials of ended studies trained.

    Example: autoglm gc news --plan
    """
    from autoglm.loop.upkeep import collect_garbage

    found = collect_garbage(open_project(folder), is_dry_run=plan)
    if as_json:
        document = {
            "table_files": len(found.table_files),
            "models": list(found.models),
            "stages": found.stages,
        }
        print_json({**document, "bytes": found.num_bytes, "is_plan": plan})
        return
    verb = "would go" if plan else "deleted"
    typer.echo(
        f"{verb}: {len(found.table_files)} files of the feature table, {len(found.models)} model"
        f" folders, {found.stages} trained stages, {size(found.num_bytes)}"
    )
