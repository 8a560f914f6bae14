"""`autoglm run`: once round the loop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from autoglm.cli.options import AsJson, Folder, open_project, project_command
from autoglm.cli.output import fail, number, print_json
from autoglm.cli.progress import Progress, stream_for
from autoglm.cli.report import show_report
from autoglm.errors import AutoGLMError, CancelledError, ConfigError


@project_command
def run(
    folder: Folder = Path(),
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would cost and stop.")] = False,
    no_replay: Annotated[
        bool, typer.Option("--no-replay", help="Do not replay held-out rows as traffic.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Go round the loop once: collect changes, search, train, prove, release.

    Examples:
      autoglm run news

      autoglm run news --plan

      autoglm run news --json --set search.trials=6

    """
    project = open_project(folder)
    owner = project.owner()
    if owner is not None and owner.address:
        from autoglm.cli.remote import run_under_up

        if plan or no_replay or project.layers.assignments or project.layers.more_files:
            raise ConfigError(
                f"`autoglm up` (process {owner.pid}) runs this project by its own settings.",
                code="config.owned_by_up",
                next_step="Leave --plan, --no-replay, --set and --config out, or stop it first.",
            )
        run_under_up(project, owner, as_json=as_json)
        return

    from autoglm.loop.run_loop import go_round

    trip(
        project,
        lambda app, runs: go_round(app, runs, plan_only=plan),
        what="autoglm run",
        replay=not no_replay,
        as_json=as_json,
    )


def trip(
    project: Any,
    work: Callable[[Any, Any], Mapping[str, Any]],
    *,
    what: str,
    replay: bool,
    as_json: bool,
) -> None:
    """Own the project, open the loop, do `work`, print its result; Ctrl-C parks the run."""
    from autoglm.loop.app import App
    from autoglm.loop.run_loop import open_runs
    from autoglm.observability import logging as logs

    progress = Progress(stream_for(as_json))
    with project.own(what):
        logs.configure("control", project=project.name, folder=project.logs)
        app = App(
            project=project,
            on_event=progress.on_event,
            replay=replay and project.settings.release.replay,
        )
        cancel_on_signals(app.cancel)
        runs = None
        try:
            runs = open_runs(app)
            result = work(app, runs)
        except CancelledError as error:
            progress.close()
            _leave_parked(app, error, as_json)
        except AutoGLMError as error:
            progress.close()
            app.close()
            fail(error, as_json=as_json)
        progress.close()
        runs.close()
        app.close()
    show(result, as_json)
    if result["status"] == "failed":
        raise typer.Exit(1)


def cancel_on_signals(cancel: threading.Event) -> None:
    def on_signal(number: int, _frame: Any) -> None:
        if cancel.is_set():  # the second time somebody means it
            os._exit(128 + number)
        cancel.set()
        with contextlib.suppress(OSError):
            typer.echo("\nstopping at the next safe point (once more to stop now) …", err=True)

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)


def _leave_parked(app: Any, error: CancelledError, as_json: bool) -> NoReturn:
    """End the process while the step's thread stays where it is: nothing of it gets recorded."""
    app.close()
    try:
        fail(error, as_json=as_json)
    finally:  # also when nobody reads what we say: the parked thread would keep us alive for ever
        os._exit(130)


def show(result: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    status = result["status"]
    if status == "planned":
        return
    if status == "unchanged":
        typer.echo(f"unchanged: {result['reason']}. Nothing to do.")
        return
    if status == "failed":
        error = result["error"]
        typer.echo(f"failed [{error['code']}] in step {error.get('step', '?')}: {error['message']}")
        if error["next_step"]:
            typer.echo(f"  next: {error['next_step']}")
        return
    _show_succeeded(result)


def _show_succeeded(result: Mapping[str, Any]) -> None:
    report, rollout = result["report"], result["rollout"]
    typer.echo()
    show_report(report, "candidate", "stable")
    whole = report.get("linear_whole")
    reached = report["candidate"][report["metric"]]["value"]
    if whole is not None and reached is not None and whole > reached:
        typer.echo(
            f"a linear model that reads whole texts reaches {number(whole)}:"
            " data.max_length cuts something off that counts"
        )
    typer.echo()
    traffic = ", replayed traffic" if rollout["replayed_traffic"] else ""
    typer.echo(
        f"model v{result['model_number']} ({result['model_version'][:12]}) from dataset version"
        f" {result['dataset_version']['version']}: {rollout['verdict']} ({rollout['reason']}),"
        f" weight {rollout['weight']} %{traffic}"
    )
    took = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in result["seconds"].items())
    typer.echo(f"took {took}")
    typer.echo(
        'next: autoglm predict -C PROJECT "a text" · autoglm up PROJECT · autoglm models list'
    )
