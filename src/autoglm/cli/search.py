"""`autoglm search`: a study alone, what it found, and how its best values are taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from autoglm.cli.options import AsJson, Folder, open_project, project_command
from autoglm.cli.output import number, print_json, print_pairs, print_table
from autoglm.errors import StorageError

app = typer.Typer(
    help="Studies: run one, show it, apply its best values.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
StudyOption = Annotated[
    str, typer.Option("--study", metavar="RUN", help="The study; the newest if left out.")
]


@app.command("run")
@project_command
def run(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Search on the newest dataset version; nothing is exported or released.

    Stopped and called again, it goes on; ended, its result is printed again.

    Examples:
      autoglm search run news

      autoglm search run news --set search.scheduler=asha --set search.cpu_budget=20min --json

    """
    from autoglm.cli.stations import alone
    from autoglm.contracts.record import to_json
    from autoglm.loop.stations import search

    found = alone(folder, "autoglm search run", as_json, lambda owned: to_json(search(owned)))
    if as_json:
        print_json(found)
        return
    best = found["best"]
    print_pairs(
        {
            "study": found["study"],
            "trials": f"{len(found['trials'])}, ended by {found['stopped_by']}",
            f"best {found['metric']}": _best(best),
            **best["params"],
            "CPU seconds": number(found["cpu_seconds"], 1),
        }
    )
    _print_unmet(found["unmet"], is_over=True)
    if found["pareto"]:
        typer.echo(f"no other trial beats: {', '.join(map(str, found['pareto']))}")
    typer.echo(f"next: autoglm search show {folder}, autoglm search apply {folder}")


@app.command("show")
@project_command
def show(
    folder: Folder = Path(),
    study: StudyOption = "",
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write it as one HTML page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a study found, also while it runs: best so far, curves, importance, what was saved.

    Examples:
      autoglm search show news

      autoglm search show news --study RUN --html study.html

    """
    from autoglm.search.page import page_of
    from autoglm.search.report import report_of
    from autoglm.state.event_log import EventLog

    project = open_project(folder)
    report = report_of(EventLog(project.reading_engine), study, project=project.name)
    if html is not None:
        _write(html, page_of(report))
    if as_json:
        print_json(report)
        return
    _print_report(report)
    if html is not None:
        typer.echo(f"\nwritten: {html}")


@app.command("apply")
@project_command
def apply(folder: Folder = Path(), study: StudyOption = "", as_json: AsJson = False) -> None:
    """Write a study's best values to autoglm.tuned.yaml: a config layer of its own, to be reviewed.

    Example: autoglm search apply news --study RUN
    """
    from autoglm.loop.tuned import apply_best

    done = apply_best(open_project(folder), study)
    if as_json:
        print_json(done)
        return
    _print_unmet(done["unmet"], is_over=done["is_ended"])
    if not done["is_ended"]:
        typer.echo("the study has not ended yet: these are its best values so far.")
    rows = [(key, change["was"], change["is"]) for key, change in done["changes"].items()]
    print_table(("key", "was", "is"), rows)
    for key, layer in done["overruled"].items():
        typer.echo(f"{key}: {layer} says something else, which counts.")
    typer.echo(f"written: {done['file']}. next: review it; autoglm run {folder}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.",
            code="storage.no_place",
            next_step="Name a file in a folder that is there.",
            exit_code=2,
            retryable=False,
        ) from error


def _best(trial: Mapping[str, Any]) -> str:
    said = f"{number(trial['value'], 4)} (trial {trial['number']})"
    if not trial.get("interval"):
        return said
    low, high = (number(end, 4) for end in trial["interval"])
    return f"{said}, mean of {len(trial['folds'])} folds, 95 % in {low} … {high}"


def _print_report(report: Mapping[str, Any]) -> None:
    from autoglm.cli.plots import bar, console, step_plot
    from autoglm.search.refresh import said_of

    best, metric = report["best"], report["metric"]
    states = ", ".join(f"{num} {name.replace('_', ' ')}" for name, num in report["states"].items())
    print_pairs(
        {
            "study": report["study"],
            "trials": states or "none",
            "ended by": report["stopped_by"] or _not_ended(report),
            **({"changed": said} if (said := said_of(report["refresh"])) else {}),
            **_peak(report["trials"]),
            "training": f"{report['seconds']:.0f} s, {report['cpu_seconds']:.0f} CPU-seconds",
        }
    )
    if best:
        print_pairs({f"best {metric}": _best(best), **best["params"]})
    _print_unmet(report["unmet"], is_over=bool(report["stopped_by"]))
    screen = console()
    for axis, label in (("seconds", "seconds of training"), ("cpu_seconds", "CPU-seconds")):
        points = [(moment[axis], moment["value"]) for moment in report["best_so_far"]]
        for line in step_plot(points, end=report[axis], x_label=label, y_label=metric):
            screen.print(line, markup=False, highlight=False)
    if report["importance"]:
        typer.echo("\nimportance (PED-ANOVA)")
        for key, share in report["importance"].items():
            screen.print(f"  {key:<32} {share:4.2f} {bar(share)}", markup=False, highlight=False)
    _print_tables(report)


def _not_ended(report: Mapping[str, Any]) -> str:
    return f"an error, {report['failed']}" if report["failed"] else "not ended yet"


def _print_unmet(unmet: Sequence[Mapping[str, Any]], *, is_over: bool) -> None:
    from autoglm.contracts.record import from_json
    from autoglm.contracts.trial import Unmet
    from autoglm.search.bounds import said_of

    if said := said_of([from_json(Unmet, each) for each in unmet]):
        then = "the best of all is shown; a run would release nothing" if is_over else "so far"
        typer.echo(f"{said}: {then}.")


def _print_tables(report: Mapping[str, Any]) -> None:
    if report["removed"]:
        typer.echo("\nnot asked")
        print_table(
            ("key", "stays at", "by", "evidence"),
            [(r["key"], r["value"], r["by"], r["evidence"]) for r in report["removed"]],
        )
    expected = [row for row in report["trials"] if row["why"]]
    if expected:
        typer.echo("\nwhat trials were expected to cost")
        print_table(
            ("trial", "expected CPU s", "paid", "why"),
            [
                (
                    row["number"],
                    number(row["expected_cpu_seconds"], 1),
                    number(row["cpu_seconds"], 1),
                    "; ".join(row["why"]),
                )
                for row in expected
            ],
        )
    if report["saved"]:
        typer.echo("\nCPU-seconds saved")
        print_pairs({lever: number(seconds, 1) for lever, seconds in report["saved"].items()})
    if report["pareto"]:
        typer.echo("\nno other trial beats these")
        names: Sequence[str] = report["objectives"]
        points = report["pareto"]
        rows = [(p["number"], *(number(p["values"][n], 4) for n in names)) for p in points]
        print_table(("trial", *names), rows)
    typer.echo("")
    keys = sorted({key for row in report["trials"] for key in row["params"]})
    print_table(
        ("trial", "state", report["metric"], "curve", "CPU s", *keys),
        [
            (
                row["number"],
                row["state"].replace("_", " "),
                number(row["value"], 4),
                " ".join(f"{value:.3f}" for value in row["curve"].values()),
                number(row["cpu_seconds"], 1),
                *(_short(row["params"].get(key, "—")) for key in keys),
            )
            for row in report["trials"]
        ],
    )


def _peak(trials: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    most = max((row["peak"].get("peak_resident_bytes", 0) for row in trials), default=0)
    return {"peak memory": f"{most / 2**20:,.0f} MiB resident"} if most else {}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
