"""Rows drawn again and again, always the same ones: what 95 % intervals are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from autoglm.contracts.evaluation_report import Score
from autoglm.errors import PluginError

RESAMPLES = 1000
# What is not made of sums is computed from the rows each time.
PLUGIN_RESAMPLES = 200
# So many standard deviations lie around the middle 95 % of a normal distribution.
NORMAL_95 = 1.959964
UNDEFINED = Score(value=None, low=None, high=None, rows=0)


def weights(num_rows: int) -> Iterator[Any]:
    """How often each row is drawn, for each resample."""
    generator = np.random.default_rng(20_260_101)
    for _ in range(RESAMPLES):
        yield np.bincount(generator.integers(0, num_rows, num_rows), minlength=num_rows)


def interval(draws: Iterable[float | None]) -> tuple[float | None, float | None]:
    """The middle 95 % of the draws that have a value."""
    defined = [draw for draw in draws if draw is not None]
    if not defined:
        return None, None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def wilson(share: float, num: float) -> tuple[float, float]:
    """The 95 % interval of a share of `num` independent rows, also where it is 0 or 1 (of n rows
    that are all right: n / (n + 3.84) to 1; the rule of three says 1 - 3 / n of its lower end).
    Source: Wilson, "Probable Inference", 1927, JASA 22.
    """
    squared = NORMAL_95**2
    centre = (share + squared / (2 * num)) / (1 + squared / num)
    spread = share * (1 - share) / num + squared / (4 * num**2)
    half = NORMAL_95 * math.sqrt(spread) / (1 + squared / num)
    return max(0.0, centre - half), min(1.0, centre + half)


def standard_error(share: float, num_rows: int) -> float | None:
    """Of a share of `num_rows`; None where `share` is none. Two rows more are taken as right and
    two as wrong: of rows that are all right the plain formula would say 0, that is, that no other
    rows can be answered wrongly.
    Source: Agresti and Coull, "Approximate Is Better than Exact", 1998, Am. Statistician 52.
    """
    if not 0.0 <= share <= 1.0:
        return None
    num = num_rows + 4
    moved = (share * num_rows + 2) / num
    return math.sqrt(moved * (1.0 - moved) / num)


def drawn(
    value: Callable[..., float | None], *columns: Sequence[Any], resamples: int = PLUGIN_RESAMPLES
) -> list[float | None]:
    """`value` of the columns' rows, drawn again; None where it is undefined, or no number."""
    draws: list[float | None] = []
    for times in islice(weights(len(columns[0])), resamples):
        rows = np.repeat(np.arange(len(columns[0])), times).tolist()
        try:
            draws.append(value(*([column[i] for i in rows] for column in columns)))
        except PluginError:  # as an area under a curve is, of one class: the whole has a value
            draws.append(None)
    return draws
