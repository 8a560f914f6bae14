"""An evaluation report for people: scores, slices, floors, constraints."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import typer

from autoglm.cli.output import number, print_table, size


def show_report(report: Mapping[str, Any], model: str, stable: str) -> None:
    """`model` and `stable` head the columns."""
    rows = []
    for name, score in report["candidate"].items():
        say = _size if name == "size_bytes" else number
        interval = f"{say(score['low'])} – {say(score['high'])}"
        other = say(report["stable"].get(name, {}).get("value"))
        rows.append((name + _mark(report, name), say(score["value"]), interval, other))
    print_table((f"on {report['test_rows']} test rows", model, "95 %", stable), rows)
    for name, problem in report.get("problems", {}).items():
        typer.echo(f"{name} has no score: {problem}")
    _show_slices(report, model, stable)
    if report["majority"] is not None or report["linear_floor"] is not None:
        named = (("majority", report["majority"]), ("linear", report["linear_floor"]))
        floors = ", ".join(f"{name} {number(value)}" for name, value in named if value is not None)
        typer.echo(f"floors for {report['metric']}: {floors}")


def _size(num_bytes: float | None) -> str:
    return "—" if num_bytes is None else size(num_bytes)


def _mark(report: Mapping[str, Any], name: str) -> str:
    if name == report["metric"]:
        return " (gate)"
    bound = report.get("constraints", {}).get(name)
    return f" ({bound})" if bound else ""


def _show_slices(report: Mapping[str, Any], model: str, stable: str) -> None:
    """The gate's metric, and those with a constraint, of each group."""
    names = [report["metric"], *report.get("constraints", {})]
    for by, group in groupby(report.get("slices", ()), key=lambda each: each["by"]):
        rows = []
        for each in group:
            for name in (n for n in names if n in each["candidate"]):
                score = each["candidate"][name]
                interval = f"{number(score['low'])} – {number(score['high'])}"
                other = number(each["stable"].get(name, {}).get("value"))
                rows.append(
                    (each["name"], each["rows"], name, number(score["value"]), interval, other)
                )
        typer.echo()
        print_table((f"by {by}", "rows", "", model, "95 %", stable), rows)
