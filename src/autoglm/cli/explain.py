"""`autoglm explain`: where a row went, where a model came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autoglm.cli.options import AsJson, FolderOption, open_project, project_command
from autoglm.cli.output import print_json, print_pairs, print_table
from autoglm.errors import AutoGLMError


@project_command
def explain(
    model: Annotated[
        str, typer.Argument(help="stable, previous, candidate, a number, or a digest.")
    ] = "",
    row: Annotated[str, typer.Option("--row", help="A row's key, in place of a model.")] = "",
    folder: FolderOption = Path(),
    as_json: AsJson = False,
) -> None:
    """What a model came from, or what became of a row: dataset versions, runs, traces.

    Examples: autoglm explain stable -C news · autoglm explain --row 4711 -C news
    """
    from autoglm.loop.explain import explain_model, explain_row

    if bool(model) == bool(row):
        raise AutoGLMError(
            "a model or a row is explained: say one of them.",
            code="cli.bad_call",
            next_step="autoglm explain stable, or autoglm explain --row KEY.",
            exit_code=2,
        )
    project = open_project(folder)
    document = explain_row(project, row) if row else explain_model(project, model)
    if as_json:
        print_json(document)
    elif row:
        _show_row(document)
    else:
        _show_model(document)


def _show_row(document: dict[str, Any]) -> None:
    print_table(
        ("change", "table version", "source", "offset", "trace"),
        [
            (
                c["op"] if c["op"] != "dead" else f"dead: {c['code']}",
                c["table_version"],
                c["source"] or "—",
                f"{c['partition']}/{c['offset']}",
                c["trace_id"] or "—",
            )
            for c in document["changes"]
        ],
    )
    now = document["now"]
    where = f" of dataset version {now['dataset_version']}" if now.get("dataset_version") else ""
    typer.echo(f"now: {now['state']}{where}{'. ' + now['why'] if now.get('why') else ''}")
    for run in document["runs"]:
        typer.echo(
            f"run {run['run_id']} ({run['status']}): dataset version {run['dataset_version']},"
            f" trace {run['trace_id']}"
        )
    for each in document["models"]:
        typer.echo(f"model v{each['number']} ({each['digest'][:12]}) learnt from it")
    if not document["models"]:
        typer.echo("no model has learnt from it")


def _show_model(document: dict[str, Any]) -> None:
    model, dataset, run = document["model"], document["dataset"], document["run"]
    lineage = model["lineage"]
    facts: dict[str, Any] = {
        "model": f"v{model['number']} {model['digest']}",
        "aliases": ", ".join(model["aliases"]) or "—",
        "run": lineage["run_id"],
        "trace": lineage["trace_id"],
        "tuning": lineage["tuning"],
        "parameters": ", ".join(f"{k} {v}" for k, v in sorted(lineage["params"].items())) or "—",
        "metrics": ", ".join(f"{k} {v:.4g}" for k, v in sorted(lineage["metrics"].items())) or "—",
        "dataset": f"version {lineage['dataset_version']}, {lineage['dataset_rows']:,} rows",
        "config": lineage["config_digest"],
    }
    if run is not None:
        facts["trigger"] = f"{run['trigger']}: {run['reason']}"
        facts["result"] = f"{run['status']} {(run['result'] or {}).get('reason', '')}".strip()
    if dataset is not None:
        facts["traces of its rows"] = ", ".join(dataset["traces"][:4]) + (
            f" and {len(dataset['traces']) - 4} more" if len(dataset["traces"]) > 4 else ""
        )
    parents = [f"v{p['number']}" for p in document["parents"]]
    facts["in service before it"] = ", ".join(parents) or "nothing"
    print_pairs(facts)
