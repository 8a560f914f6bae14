"""`autoglm dead-letters`: events that no processor could use, and another try."""

from __future__ import annotations

import threading
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from autoglm.cli.options import AsJson, FolderOption, open_project, project_command
from autoglm.cli.output import print_json, print_table

app = typer.Typer(
    help="Events that no processor could use: list, replay.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Code = Annotated[str, typer.Option("--code", help="Only those with this code.")]
Key = Annotated[str, typer.Option("--key", help="Only those of this key.")]
SHOWN_CAUSE = 60


@app.command("list")
@project_command
def list_letters(
    folder: FolderOption = Path(),
    code: Code = "",
    key: Key = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Dead letters that wait: their key, cause, and where the event lies.

    Examples:
      autoglm dead-letters list -C news

      autoglm dead-letters list -C news --code data.text_too_long --json

    """
    letters = _chosen(open_project(folder), code, key)
    shown = letters[:limit]
    if as_json:
        from autoglm.contracts.record import to_json

        print_json({"waiting": len(letters), "dead_letters": [to_json(x) for x in shown]})
        return
    if not letters:
        typer.echo("no dead letter waits.")
        return
    rows = [(x.key, x.code, x.cause[:SHOWN_CAUSE], f"{x.partition}/{x.offset}") for x in shown]
    print_table(("key", "code", "cause", "partition/offset"), rows)
    if len(letters) > limit:
        typer.echo(f"… and {len(letters) - limit} more (--limit).")
    typer.echo("next: autoglm dead-letters replay, once their cause is mended")


@app.command("replay")
@project_command
def replay_letters(
    folder: FolderOption = Path(), code: Code = "", key: Key = "", as_json: AsJson = False
) -> None:
    """Send them through the processors again; what is still wrong dies again.

    Under a running `autoglm up` they are handed to its workers; else they are processed here.

    Examples:
      autoglm dead-letters replay -C news --code plugin.failed

    """
    from autoglm.loop.change_to_dataset import open_broker, open_consumer, topic_of
    from autoglm.streaming.replay import replay

    project = open_project(folder)
    # The broker lets several processes append; that nobody else processes is what is owned.
    is_owned = project.owner() is not None
    own = nullcontext() if is_owned else project.own("autoglm dead-letters replay")
    with own, closing(open_broker(project)) as broker:
        letters = _chosen(project, code, key)
        done = replay(letters, broker, topic=topic_of(project), project=project.name)
        document: dict[str, Any] = {"replayed": done.events, "lost": list(done.lost)}
        if not is_owned:
            cancel = threading.Event()
            drained = open_consumer(project, broker, cancel).drain(cancel)
            document |= {"rows": drained.rows, "dead": drained.dead}
    if as_json:
        print_json(document)
        return
    typer.echo(f"replayed {done.events}")
    if not is_owned:
        typer.echo(f"  rows {document['rows']}, dead again {document['dead']}")
    elif done.events:
        typer.echo("  the running `autoglm up` processes them now")
    for lost in done.lost:
        typer.echo(f"  {lost}: only its beginning is kept; change the row at its source")


def _chosen(project: Any, code: str, key: str) -> list[Any]:
    from autoglm.loop.explain import spelled
    from autoglm.streaming.replay import waiting

    key = spelled(project, key) if key else ""
    found = waiting(project.table())
    return [x for x in found if code in ("", x.code) and key in ("", x.key)]
