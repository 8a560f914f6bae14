"""Plots of text: they need a terminal neither to be read nor to be tested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH, HEIGHT = 60, 8


def console() -> Console:
    """Standard output as rich writes to it; a line is not wrapped."""
    from rich.console import Console

    return Console(soft_wrap=True)


def bar(share: float, width: int = 24) -> str:
    """`share` of 1 as a bar, in eighths of a character."""
    whole, eighths = divmod(round(max(0.0, min(1.0, share)) * width * 8), 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[eighths] if eighths else "")


def step_plot(
    points: Sequence[tuple[float, float]], *, end: float, x_label: str, y_label: str
) -> list[str]:
    """Lines of a plot of a value that holds until the next point, from 0 to `end`."""
    if not points:
        return []
    low, high = min(y for _x, y in points), max(y for _x, y in points)
    last = max(end, points[-1][0]) or 1.0
    cells = [[" "] * WIDTH for _ in range(HEIGHT)]
    rows = [round((HEIGHT - 1) * (y - low) / (high - low)) if high > low else 0 for _x, y in points]
    columns = [min(WIDTH - 1, int(WIDTH * x / last)) for x, _y in points]
    for index, (column, row) in enumerate(zip(columns, rows, strict=True)):
        until = columns[index + 1] if index + 1 < len(columns) else WIDTH
        for place in range(column, until):
            cells[row][place] = "━"
        for step in range(rows[index - 1] + 1 if index else row, row):
            cells[step][column] = "│"
        cells[row][column] = "●"
    labels = [f"{low + (high - low) * row / (HEIGHT - 1):9.4f}" for row in range(HEIGHT)]
    lines = [f"{labels[row]} ┤{''.join(cells[row]).rstrip()}" for row in reversed(range(HEIGHT))]
    if high == low:
        lines = lines[-1:]
    foot = f"{'0':>11}{f'{last:.4g} {x_label}':>{WIDTH}}"
    return ["", f"best {y_label} over {x_label}", *lines, foot]
