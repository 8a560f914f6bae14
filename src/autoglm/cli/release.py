"""`autoglm release`: how a candidate fares."""

from __future__ import annotations

from pathlib import Path

import typer

from autoglm.cli.options import AsJson, FolderOption, open_project, project_command
from autoglm.cli.output import print_json, print_pairs, print_table

app = typer.Typer(help="Rollouts: status.", no_args_is_help=True, rich_markup_mode=None)


@app.command("status")
@project_command
def status(folder: FolderOption = Path(), as_json: AsJson = False) -> None:
    """Aliases, weights, and the newest rollout's decisions with their numbers.

    Example: autoglm release status -C news
    """
    from autoglm.loop import records
    from autoglm.state.event_log import EventLog

    project = open_project(folder)
    registry = project.registry(read_only=True)
    shown = records.release(project, registry, EventLog(project.reading_engine))
    if as_json:
        print_json(shown)
        return
    print_pairs({name: digest[:12] for name, digest in shown["aliases"].items()} or {"stable": "—"})
    if shown["rollout_id"] is None:
        typer.echo("no rollout yet. next: autoglm run")
        return
    typer.echo(f"rollout {shown['rollout_id']}")
    print_table(
        ("at", "event", "weight", "verdict", "reason"),
        [
            (
                e["at"][11:19],
                e["kind"],
                e.get("weight", ""),
                e.get("verdict") or "",
                e.get("reason", ""),
            )
            for e in shown["events"]
        ],
    )
