"""`autoglm config`: which value is in force, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoglm.cli.options import AsJson, FolderOption, open_project, project_command
from autoglm.cli.output import print_json, print_table
from autoglm.errors import StorageError

if TYPE_CHECKING:
    from autoglm.contracts.run_spec import RunSpec
    from autoglm.project import Project

app = typer.Typer(
    help="Configuration: show, explain, check.", no_args_is_help=True, rich_markup_mode=None
)
TrialNumber = Annotated[
    int | None, typer.Option("--trial", metavar="N", help="With trial N as the strongest layer.")
]
RunOption = Annotated[
    str,
    typer.Option("--run", metavar="RUN", help="Run or study of --trial; the newest if left out."),
]


def _config(folder: Path, trial: int | None, run_id: str) -> Any:
    """In force now; with `--trial`, what that trial of a run was made with."""
    project = open_project(folder)
    if trial is None:
        return project.config
    from autoglm.settings import run_settings

    spec, params = _trial(project, trial, run_id)
    return run_settings(spec, project.config, trial=params, name=f"trial {trial} of {spec.run_id}")


def _trial(project: Project, number: int, run_id: str) -> tuple[RunSpec, dict[str, Any]]:
    from autoglm.loop.refreshing import spec_of
    from autoglm.search.report import find_study
    from autoglm.search.warm_start import told_params
    from autoglm.state.event_log import EventLog
    from autoglm.triggers.admission import Admission

    engine = project.reading_engine
    wanted = find_study(EventLog(engine), run_id)
    params = told_params(EventLog(engine), wanted)
    spec = spec_of(wanted, Admission(engine, project.state))
    if number not in params or spec is None:
        known = ", ".join(map(str, sorted(params))) or "none"
        raise StorageError(
            f"study {wanted} has no trial {number}; it has {known}."
            if spec is not None
            else f"what study {wanted} was made with is gone.",
            code="run.unknown_trial",
            next_step="See `autoglm search show`.",
        )
    return spec, params[number]


@app.command("show")
@project_command
def show(
    folder: FolderOption = Path(),
    trial: TrialNumber = None,
    run_id: RunOption = "",
    as_json: AsJson = False,
) -> None:
    """The effective configuration, each value with the layer that set it. Secrets are masked.

    Examples:
      autoglm config show -C news

      autoglm config show -C news --trial 3 --json

    """
    from autoglm.config import provenance
    from autoglm.settings import TUNED_NAME

    config = _config(folder, trial, run_id)
    rows = provenance.show(config)
    if as_json:
        print_json({"layers": list(config.layers), "keys": rows})
        return
    print_table(
        ("key", "value", "layer", "where"),
        [(r["key"], _text(r["value"]), r["layer"], r["where"]) for r in rows],
    )
    if TUNED_NAME in config.layers:
        typer.echo(f"{TUNED_NAME} is in force (`autoglm search apply` wrote it).")


@app.command("explain")
@project_command
def explain(
    key: Annotated[str, typer.Argument(help="A key, in any spelling: training.lr.")],
    folder: FolderOption = Path(),
    trial: TrialNumber = None,
    run_id: RunOption = "",
    as_json: AsJson = False,
) -> None:
    """Every layer that was asked for a key, what each said and where; the last one counts.

    Example: autoglm config explain training.lr -C news --profile prod
    """
    from autoglm.config import provenance

    document = provenance.explain(_config(folder, trial, run_id), key)
    if as_json:
        print_json(document)
        return
    typer.echo(f"{document['key']} = {_text(document['value'])}  (by {document['layer']})")
    print_table(
        ("", "layer", "said", "where"),
        [
            (
                "→" if line["in_force"] else "",
                line["layer"],
                _text(line["value"]) if line["said"] else "nothing",
                line["where"],
            )
            for line in document["layers"]
        ],
    )


@app.command("check")
@project_command
def check(folder: FolderOption = Path(), as_json: AsJson = False) -> None:
    """Validate every layer, the search space, and the names of plugins; run nothing.

    Example: autoglm config check -C news --profile prod
    """
    from autoglm.loop.names import check_names

    project = open_project(folder)
    check_names(project.settings, project.layers)
    layers = list(project.config.layers)
    if as_json:
        print_json({"ok": True, "layers": layers})
        return
    typer.echo(f"valid. layers, weakest first: {', '.join(layers)}")


def _text(value: Any) -> str:
    """As it would read in the file."""
    plain = isinstance(value, str) and value != ""
    return str(value) if plain else json.dumps(value, ensure_ascii=False, default=str)
