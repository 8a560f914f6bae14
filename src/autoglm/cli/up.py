"""`autoglm up`: keep going round; serve API, page and predictions."""

from __future__ import annotations

from pathlib import Path

import typer

from autoglm.cli.options import AsJson, Folder, open_project, project_command
from autoglm.cli.output import print_json


@project_command
def up(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Watch the source, run on changes, release, and serve predictions until stopped.

    Examples:
      autoglm up news

      autoglm up news --set serving.port=0 --json

    """
    from autoglm.processes.supervisor import Supervisor

    project = open_project(folder)

    def announce(address: str) -> None:
        if as_json:
            print_json({"address": address, "project": project.name})
            return
        typer.echo(f"{project.name} is served on {address}")
        typer.echo(f"  page     {address}/")
        typer.echo(f'  predict  curl -s {address}/api/v1/predict -d \'{{"text": "…"}}\'')
        typer.echo(f"  train    curl -s -X POST {address}{project.settings.trigger.manual_invoke}")
        typer.echo("Ctrl-C stops it.")

    Supervisor(project, on_ready=announce).run()
