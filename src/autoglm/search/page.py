"""The report of a study as one HTML page that loads nothing."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from autoglm.search.charts import line_chart, parallel_coordinates
from autoglm.search.refresh import said_of

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { text-align: left; padding: 0.15rem 0.8rem 0.15rem 0; border-bottom: 1px solid #d7dbe0; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; max-width: 52rem; } svg text { font-size: 11px; fill: #57606a; }
svg .axis { stroke: #8c959f; } svg polyline { fill: none; stroke-width: 1.2; }
svg .other { stroke: #8c9fb8; stroke-opacity: 0.55; } svg circle.other { fill: #8c9fb8; }
svg .best { stroke: #c2410c; stroke-width: 2; } svg circle.best { fill: #c2410c; }
.bar { display: inline-block; height: 0.7em; background: #c2410c; }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117; } th, td { border-color: #30363d; }
  svg text { fill: #9ea7b3; } }
"""


def page_of(report: Mapping[str, Any]) -> str:
    """One self-contained document; every text from the study is escaped."""
    title = f"Study {report['study']}"
    sections = [
        ("Best so far over time", _best_so_far(report, "seconds")),
        ("Best so far over CPU-seconds", _best_so_far(report, "cpu_seconds")),
        ("Parallel coordinates", _parallel(report)),
        ("Importance (PED-ANOVA)", _shares(report["importance"])),
        ("Constraints that no trial keeps", _unmet(report["unmet"])),
        ("Not asked", _removed(report["removed"])),
        ("Learning curves", _curves(report)),
        ("CPU-seconds saved", _numbers(report["saved"])),
        ("Pareto front", _pareto(report)),
        ("Tried first, from earlier studies", _hints(report["hints"])),
        ("Trials", _trials(report)),
    ]
    body = "".join(f"<h2>{name}</h2>{part}" for name, part in sections if part)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{_head(report)}{body}</body></html>\n"
    )


def _removed(removed: Sequence[Mapping[str, Any]]) -> str:
    rows = [(r["key"], r["value"], r["by"], r["evidence"]) for r in removed]
    return _table(("key", "stays at", "by", "evidence"), rows) if rows else ""


def _unmet(missed: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            each["metric"],
            each["bound"],
            f"{each['missed_by']} of {each['of']}",
            "undefined" if each["nearest"] is None else each["nearest"],
            "—" if each["trial"] is None else each["trial"],
        )
        for each in missed
    ]
    return _table(("metric", "bound", "missed by", "at best", "trial"), rows) if rows else ""


def _head(report: Mapping[str, Any]) -> str:
    best, states = report["best"], report["states"]
    counts = ", ".join(f"{num} {state.replace('_', ' ')}" for state, num in states.items())
    said = [
        ("project", report["project"]),
        ("trials", counts or "none"),
        ("ended by", report["stopped_by"] or "not ended yet"),
        *[("changed", said) for said in [said_of(report["refresh"])] if said],
        ("training", f"{report['seconds']:.0f} s, {report['cpu_seconds']:.0f} CPU-seconds"),
    ]
    if best:
        value = f"{best['value']:.4f} (trial {best['number']})"
        if best["interval"]:
            low, high = best["interval"]
            value += f", mean of {len(best['folds'])} folds, 95 % in {low:.4f} … {high:.4f}"
        said.insert(1, (f"best {report['metric']}", value))
        said += list(best["params"].items())
    return _table((), [(name, _shown(value)) for name, value in said])


def _best_so_far(report: Mapping[str, Any], axis: str) -> str:
    points = [(moment[axis], moment["value"]) for moment in report["best_so_far"]]
    if points:
        points.append((max(report[axis], points[-1][0]), points[-1][1]))
    label = "CPU-seconds" if axis == "cpu_seconds" else "seconds of training"
    return line_chart([("best", points)], x_label=label, y_label=report["metric"], is_stepped=True)


def _parallel(report: Mapping[str, Any]) -> str:
    best = report["best"]
    return parallel_coordinates(
        report["axes"],
        report["trials"],
        metric=report["metric"],
        best=best["number"] if best else None,
    )


def _curves(report: Mapping[str, Any]) -> str:
    """Of the trials that were looked at more than once."""
    best = report["best"]["number"] if report["best"] else None
    rows = [row for row in report["trials"] if len(row["curve"]) > 1]
    lines = [
        (
            "best" if row["number"] == best else "other",
            [(float(stage), value) for stage, value in row["curve"].items()],
        )
        for row in sorted(rows, key=lambda row: row["number"] == best)
    ]
    return line_chart(lines, x_label="epochs", y_label=report["metric"])


def _shares(shares: Mapping[str, float]) -> str:
    rows = [
        f'<tr><td>{html.escape(key)}</td><td class="number">{share:.2f}</td>'
        f'<td><span class="bar" style="width:{12 * share:.2f}em"></span></td></tr>'
        for key, share in shares.items()
    ]
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _numbers(numbers: Mapping[str, float]) -> str:
    rows = [(name, f"{number:.1f}") for name, number in numbers.items()]
    return _table((), rows) if rows else ""


def _pareto(report: Mapping[str, Any]) -> str:
    if not report["pareto"]:
        return ""
    names = report["objectives"]
    rows = [
        (point["number"], *(f"{point['values'][name]:.4f}" for name in names), point["params"])
        for point in report["pareto"]
    ]
    return _table(("trial", *names, "parameters"), rows)


def _hints(hints: Sequence[Mapping[str, Any]]) -> str:
    rows = [(h["study"], h["number"], f"{h['value']:.4f}", h["params"]) for h in hints]
    return _table(("study", "trial", "its value", "parameters"), rows) if rows else ""


def _trials(report: Mapping[str, Any]) -> str:
    rows = [
        (
            row["number"],
            row["state"].replace("_", " "),
            "—" if row["value"] is None else f"{row['value']:.4f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['expected_cpu_seconds']:.1f}: {'; '.join(row['why'])}" if row["why"] else "—",
            ", ".join(row["curve"]),
            row["cause"] or row["params"],
        )
        for row in report["trials"]
    ]
    names = (
        "trial", "state", report["metric"], "CPU-seconds", "expected", "judged after epochs",
        "parameters",
    )  # fmt: skip
    return _table(names, rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_shown(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.rpartition('.')[2]} {_shown(v)}" for key, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
