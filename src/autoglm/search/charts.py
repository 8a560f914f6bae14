"""Small charts as SVG: text in, text out, nothing is loaded from anywhere."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 36
Points = Sequence[tuple[float, float]]


def line_chart(
    lines: Sequence[tuple[str, Points]], *, x_label: str, y_label: str, is_stepped: bool = False
) -> str:
    """`lines` are (class, points); the class says how a line is drawn (`best`, `other`)."""
    points = [point for _class, line in lines for point in line]
    if not points:
        return ""
    x_range, y_range = (_range([point[axis] for point in points]) for axis in (0, 1))
    parts = _frame(x_range, y_range, x_label, y_label)
    for name, line in lines:
        if line:
            path = _path(line, x_range, y_range, is_stepped)
            parts.append(f'<polyline class="{name}" points="{path}"/>')
        for x, y in line:
            at = f'cx="{_x(x, x_range):.1f}" cy="{_y(y, y_range):.1f}"'
            parts.append(f'<circle class="{name}" {at} r="2.5"/>')
    return _svg(parts, HEIGHT)


def parallel_coordinates(
    axes: Mapping[str, Mapping[str, Any]],
    trials: Sequence[Mapping[str, Any]],
    *,
    metric: str,
    best: int | None,
) -> str:
    """One axis per parameter and one for the metric; a line per trial that has a value. A trial
    that was not asked for a parameter has no point on its axis.
    """
    measured = [trial for trial in trials if trial["value"] is not None]
    if not measured:
        return ""
    low, high = _range([trial["value"] for trial in measured])
    every = {**axes, metric: {"low": low, "high": high, "is_log": False}}
    gap = (WIDTH - LEFT - RIGHT) / max(1, len(every) - 1)
    places = {key: LEFT + gap * index for index, key in enumerate(every)}
    parts = []
    for trial in sorted(measured, key=lambda t: t["number"] == best):
        values = {**trial["params"], metric: trial["value"]}
        points = [
            f"{places[key]:.1f},{_y(_place(axis, values[key]), (0.0, 1.0)):.1f}"
            for key, axis in every.items()
            if key in values
        ]
        name = "best" if trial["number"] == best else "other"
        title = f"<title>trial {trial['number']}: {trial['value']:.4g}</title>"
        parts.append(f'<polyline class="{name}" points="{" ".join(points)}">{title}</polyline>')
    for key, axis in every.items():
        x = places[key]
        anchor = "start" if x < LEFT + 1 else "end" if x > WIDTH - RIGHT - 1 else "middle"
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
        top, bottom = _ends(axis)
        short = key.rpartition(".")[2]
        for y, text in (
            (TOP - 2, top), (HEIGHT - BOTTOM + 13, bottom), (HEIGHT - BOTTOM + 27, short),
        ):  # fmt: skip
            parts.append(_text(x, y, text, anchor))
    return _svg(parts, HEIGHT)


def _place(axis: Mapping[str, Any], value: Any) -> float:
    """0 at the foot of the axis, 1 at its head."""
    if "choices" in axis:
        texts = [_shown(choice) for choice in axis["choices"]]
        index = texts.index(_shown(value)) if _shown(value) in texts else 0
        return index / max(1, len(texts) - 1)
    low, high, value = float(axis["low"]), float(axis["high"]), float(value)
    if axis["is_log"]:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.5


def _ends(axis: Mapping[str, Any]) -> tuple[str, str]:
    if "choices" in axis:
        return _shown(axis["choices"][-1]), _shown(axis["choices"][0])
    return f"{axis['high']:.3g}", f"{axis['low']:.3g}"


def _shown(value: Any) -> str:
    return (f"{value:g}" if isinstance(value, float) else str(value))[:16]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _x(value: float, within: tuple[float, float]) -> float:
    share = (value - within[0]) / (within[1] - within[0])
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(value: float, within: tuple[float, float]) -> float:
    share = (value - within[0]) / (within[1] - within[0])
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _path(
    line: Points, x_range: tuple[float, float], y_range: tuple[float, float], is_stepped: bool
) -> str:
    placed = [(_x(x, x_range), _y(y, y_range)) for x, y in line]
    if is_stepped:
        # A best value holds until the next one: along, then up.
        corners = [(b[0], a[1]) for a, b in zip(placed, placed[1:], strict=False)]
        placed = [placed[0], *(p for pair in zip(corners, placed[1:], strict=True) for p in pair)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)


def _frame(
    x_range: tuple[float, float], y_range: tuple[float, float], x_label: str, y_label: str
) -> list[str]:
    foot = HEIGHT - BOTTOM
    return [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{foot}" y2="{foot}"/>',
        f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{foot}"/>',
        _text(LEFT - 6, TOP + 8, f"{y_range[1]:.4g}", "end"),
        _text(LEFT - 6, foot, f"{y_range[0]:.4g}", "end"),
        _text(LEFT, foot + 14, f"{x_range[0]:.4g}", "start"),
        _text(WIDTH - RIGHT, foot + 14, f"{x_range[1]:.4g}", "end"),
        _text((LEFT + WIDTH) / 2, foot + 28, x_label, "middle"),
        _text(LEFT - 6, (TOP + foot) / 2, y_label, "end"),
    ]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(parts: Sequence[str], height: int) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 -10 {WIDTH} {height + 14}" role="img">{body}</svg>'
