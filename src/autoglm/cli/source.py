"""`autoglm source`: what the source needs, how far behind it is, and how to be rid of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autoglm.cli.options import AsJson, Folder, open_project, project_command
from autoglm.cli.output import print_json, print_pairs
from autoglm.errors import SourceError

app = typer.Typer(
    help="The project's source: what it needs, its lag, what it left at the server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("setup")
@project_command
def setup(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Print the SQL that the source's owner runs once; nothing is changed.

    Examples:
      autoglm source setup news

      autoglm source setup news | psql "$DATABASE"

    """
    _source, found = _ask(folder, "setup_sql", "needs no setup that we could name")
    if as_json:
        print_json({"sql": found})
        return
    typer.echo(found or "-- Nothing is needed.")


@app.command("status")
@project_command
def status(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """What the source promises, how far behind it is, and what is amiss at the server.

    Examples:
      autoglm source status news

      autoglm source status news --json

    """
    source, found = _ask(folder, "status", "keeps nothing at a server")
    facts = {"source": source.name, "promise": source.promise, **found()}
    if as_json:
        print_json(facts)
        return
    print_pairs({name: value for name, value in facts.items() if value not in ("", None)})


@app.command("drop")
@project_command
def drop(
    folder: Folder = Path(),
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it this only says.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what the source keeps at the server (a slot holds its log back for ever).

    Examples:
      autoglm source drop news

      autoglm source drop news --yes

    """
    source, found = _ask(folder, "drop", "keeps nothing at a server")
    said = found() if yes else f"would drop what {source.name} keeps at the server; say --yes"
    if as_json:
        print_json({"dropped": yes, "what": said})
        return
    typer.echo(said)


def _ask(folder: Path, what: str, otherwise: str) -> tuple[Any, Any]:
    from autoglm.loop.change_to_dataset import open_source

    source = open_source(open_project(folder))
    if not hasattr(source, what):
        raise SourceError(
            f"{source.name} {otherwise}.", code="source.not_applicable", retryable=False
        )
    return source, getattr(source, what)
