"""`autoglm runs`: what ran, what is left to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autoglm.cli.options import AsJson, FolderOption, open_project, project_command
from autoglm.cli.output import print_json, print_pairs, print_table
from autoglm.errors import StorageError

app = typer.Typer(help="Runs: list, show, resume.", no_args_is_help=True, rich_markup_mode=None)
RunId = Annotated[
    str | None, typer.Argument(help="Run id; the newest (unfinished) one if left out.")
]


def _document(project: Any, row: Any) -> dict[str, Any]:
    from autoglm.loop import records
    from autoglm.state.event_log import EventLog

    return records.run(EventLog(project.reading_engine), row)


def _rows(project: Any) -> list[Any]:
    from autoglm.triggers.admission import Admission

    try:
        return Admission(project.reading_engine, project.state).rows()
    except StorageError as error:
        if error.code == "storage.missing":
            return []
        raise


def _status(status: str, is_owned: bool) -> str:
    is_open = status in {"admitted", "running"}
    return status if is_owned or not is_open else f"{status}, stopped (autoglm runs resume)"


@app.command("list")
@project_command
def list_runs(folder: FolderOption = Path(), as_json: AsJson = False) -> None:
    """Runs, newest first.

    Example: autoglm runs list -C news
    """
    project = open_project(folder)
    documents = [_document(project, row) for row in _rows(project)]
    if as_json:
        print_json({"runs": documents})
        return
    if not documents:
        typer.echo("no runs yet. next: autoglm run")
        return
    is_owned = project.owner() is not None
    print_table(
        ("run", "status", "trigger", "dataset", "rollout", "admitted"),
        [
            (
                d["run_id"],
                _status(d["status"], is_owned),
                d["trigger"],
                f"v{d['dataset_version']['version']} ({d['dataset_version']['rows']} rows)",
                ((d["result"] or {}).get("rollout") or {}).get("verdict", "—"),
                d["admitted_at"][:19],
            )
            for d in documents
        ],
    )


@app.command("show")
@project_command
def show_run(run_id: RunId = None, folder: FolderOption = Path(), as_json: AsJson = False) -> None:
    """One run: cause, dataset version, result.

    Example: autoglm runs show run-0123456789ab -C news
    """
    project = open_project(folder)
    rows = _rows(project)
    row = next((r for r in rows if run_id is None or r["run_id"] == run_id), None)
    if row is None:
        raise StorageError(
            f"there is no run {run_id or 'yet'}.",
            code="run.unknown",
            next_step="See `autoglm runs list`.",
        )
    document = _document(project, row)
    if as_json:
        print_json(document)
        return
    result = document.pop("result")
    print_pairs(document)
    if result is not None:
        from autoglm.cli.run import show

        show(result, as_json=False)


@app.command("resume")
@project_command
def resume(run_id: RunId = None, folder: FolderOption = Path(), as_json: AsJson = False) -> None:
    """Go on with an unfinished run where it was; without RUN the last unfinished one.

    Example: autoglm runs resume -C news
    """
    from autoglm.cli.run import trip
    from autoglm.loop.run_loop import finish

    project = open_project(folder)
    owner = project.owner()
    if owner is not None:
        raise project.owned_error()
    rows = _rows(project)
    known = {row["run_id"]: row for row in rows}
    unfinished = [r["run_id"] for r in rows if r["status"] in {"admitted", "running"}]
    wanted = run_id or next(iter(unfinished), None)
    if wanted is None or (run_id is not None and run_id not in known):
        raise StorageError(
            f"there is no run {run_id}." if run_id else "no run is unfinished.",
            code="run.unknown",
            next_step="See `autoglm runs list`.",
        )
    trip(
        project,
        lambda trip_app, runs: finish(wanted, trip_app, runs),
        what="autoglm runs resume",
        replay=True,
        as_json=as_json,
    )
