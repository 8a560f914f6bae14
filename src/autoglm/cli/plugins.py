"""`autoglm plugins`: which parts there are, from whom, and which of them are broken."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from autoglm.cli.options import AsJson, Folder, open_project, project_command
from autoglm.cli.output import print_json, print_table


@project_command
def plugins(
    folder: Folder = Path(),
    load: Annotated[
        bool, typer.Option("--load", help="Load the product's own parts too (torch: seconds).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Parts by kind and name: the product's own, installed ones, and the project's `imports:`.

    Example: autoglm plugins news
    """
    from autoglm.errors import PluginError
    from autoglm.plugins import registry
    from autoglm.plugins.project_files import execute, read_files

    broken = ""
    if (folder / "autoglm.yaml").is_file():
        project = open_project(folder)
        try:
            files = read_files(project.folder, project.settings.imports)
            execute(files, project.state / "code")
        except PluginError as error:
            broken = str(error)
    found = registry.survey(load_ours=load)
    if as_json:
        print_json({"plugins": [asdict(f) for f in found], "imports_problem": broken})
        return
    print_table(
        ("kind", "name", "from", "state"),
        [
            (f.kind, f.name, f.origin, f.problem or ("sound" if f.is_loaded else "not loaded"))
            for f in found
        ],
    )
    if broken:
        typer.echo(f"imports: {broken}", err=True)
