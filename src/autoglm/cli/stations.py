"""`autoglm collect`, `process`, `train`, `evaluate`: one station of the way alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from autoglm.cli.options import AsJson, Folder, open_project, project_command
from autoglm.cli.output import number, print_json, print_pairs
from autoglm.cli.progress import Progress, stream_for
from autoglm.cli.report import show_report


@project_command
def train(
    folder: Folder = Path(),
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write the model to; it must not exist.")
    ] = Path("model"),
    as_json: AsJson = False,
) -> None:
    """Train once on the newest dataset version, without search or release.

    Stopped and called again, it goes on from its last checkpoint.

    Examples:
      autoglm train news --out first

      autoglm train news --out deeper --set training.trainable_layers=6 --set training.lr=5e-5

    """
    from autoglm.contracts.record import to_json
    from autoglm.loop.stations import train as train_once

    trained = alone(folder, "autoglm train", as_json, lambda app: to_json(train_once(app, out, {})))
    if as_json:
        print_json(trained)
        return
    scores = " ".join(f"{name} {number(value)}" for name, value in trained["metrics"].items())
    peak = trained["peak"].get("peak_resident_bytes", 0)
    print_pairs(
        {
            "model": trained["folder"],
            "validation rows": scores,
            "optimizer steps": trained["num_steps"],
            "CPU seconds": number(trained["cpu_seconds"], 1),
            "peak memory": f"{peak / 2**20:,.0f} MiB resident" if peak else "unknown",
            "dataset version": trained["dataset_version"],
            "opens with": trained["opens_with"],
        }
    )
    typer.echo(f"next: autoglm evaluate {folder} {trained['folder']}")


@project_command
def evaluate(
    folder: Folder = Path(),
    model: Annotated[
        str, typer.Argument(help="A model folder, stable, previous, a number, or a digest.")
    ] = "stable",
    against: Annotated[
        str, typer.Option("--against", help="A second model, paired on the same rows.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Score a model on the test rows of the newest dataset version; nothing is released.

    Examples:
      autoglm evaluate news

      autoglm evaluate news ./first --against stable --json

    """
    from autoglm.contracts.record import to_json
    from autoglm.loop.stations import evaluate as evaluate_once

    report = alone(
        folder,
        "autoglm evaluate",
        as_json,
        lambda app: to_json(evaluate_once(app, model, against)),
    )
    if as_json:
        print_json(report)
        return
    show_report(report, "model", against or "—")
    if report["difference"]:
        found = report["difference"]
        interval = f"{number(found['low'])} – {number(found['high'])}"
        typer.echo(f"difference {number(found['value'])} ({interval}): {report['reason']}")
    elif report["missed"]:
        typer.echo(report["reason"])


@project_command
def collect(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Read what the source shows now into the broker; nothing is processed.

    Examples:
      autoglm collect news

      autoglm collect news --json

    """
    from contextlib import closing

    from autoglm.loop.change_to_dataset import (
        collect_once,
        open_broker,
        refuse_full,
        topic_of,
        waiting_events,
    )

    def work(app: Any) -> dict[str, Any]:
        project = app.project
        with closing(open_broker(project)) as broker:
            events = collect_once(
                project,
                broker,
                app.cancel,
                app.on_event,
                on_batch=lambda _events: refuse_full(project, broker),
            )
            waiting = waiting_events(project, broker)
            return {"topic": topic_of(project), "events": events, "backlog": waiting}

    found = alone(folder, "autoglm collect", as_json, work)
    if as_json:
        print_json(found)
        return
    print_pairs({"topic": found["topic"], "events": found["events"], "waiting": found["backlog"]})
    typer.echo(f"next: autoglm process {folder}")


@project_command
def process(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Take what lies in the broker through the processors into the feature table.

    Examples:
      autoglm process news

      autoglm process news --json

    """
    from contextlib import closing

    from autoglm.contracts.record import to_json
    from autoglm.loop.change_to_dataset import open_broker, open_consumer

    def work(app: Any) -> Any:
        with closing(open_broker(app.project)) as broker:
            return to_json(open_consumer(app.project, broker, app.cancel).drain(app.cancel))

    found = alone(folder, "autoglm process", as_json, work)
    if as_json:
        print_json(found)
        return
    version = "unchanged" if found["version"] is None else found["version"]
    print_pairs({"rows": found["rows"], "dead letters": found["dead"], "table version": version})
    dead = f"autoglm dead-letters list -C {folder}"
    typer.echo(f"next: {dead if found['dead'] else f'autoglm run {folder}'}")


def alone(folder: Path, what: str, as_json: bool, work: Callable[[Any], Any]) -> Any:
    """Own the project, do `work`, let go. A second Ctrl-C ends at once."""
    from autoglm.cli.run import cancel_on_signals
    from autoglm.loop.app import App
    from autoglm.observability import logging as logs

    project, progress = open_project(folder), Progress(stream_for(as_json))
    with project.own(what):
        logs.configure("control", project=project.name, folder=project.logs)
        app = App(project=project, on_event=progress.on_event)
        cancel_on_signals(app.cancel)
        try:
            return work(app)
        finally:
            progress.close()
            app.close()
