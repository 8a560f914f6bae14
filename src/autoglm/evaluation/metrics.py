"""Metrics by name. Each is a function of sums over rows, so that resampling rows is cheap.

A row's truth and prediction are a label (text), labels (frozenset), a number (float), tags (tuple),
or a TextScore (the truth's is that of a model that knows the answer); what a name means depends on
which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoglm.contracts.task import TextScore

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Numbers of rows, sparse: row `rows[i]` adds `values[i]` to the sum `columns[i]`."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    values: Array
    size: int

    def sums(self, weights: Any = None) -> Array:
        """(size,) over all rows, each counted as often as `weights` (rows,) says."""
        values = self.values if weights is None else self.values * weights[self.rows]
        return np.bincount(self.columns, values, self.size).astype(np.float64)

    def at(self, rows: Sequence[int]) -> Statistics:
        """Of these rows alone, counted anew from 0; what a column means stays."""
        place = np.full(self.rows.max(initial=-1) + 1, -1, np.intp)
        kept = np.asarray([row for row in rows if row < len(place)], np.intp)
        place[kept] = [i for i, row in enumerate(rows) if row < len(place)]
        new = place[self.rows]
        is_in = new >= 0
        return Statistics(new[is_in], self.columns[is_in], self.values[is_in], self.size)


@dataclass(frozen=True, slots=True)
class Metric:
    """`of` makes a value of the sums of `statistics`; None where it is undefined. `rows_of`: of a
    metric that is the share of rows answered rightly, how many rows that is a share of.
    """

    statistics: Callable[[Sequence[Any], Sequence[Any]], Statistics]
    of: Callable[[Array], float | None]
    rows_of: Callable[[Array], float] | None = None

    def __call__(self, truth: Sequence[Any], prediction: Sequence[Any]) -> float | None:
        return self.of(self.statistics(truth, prediction).sums())


def metrics_of(truth: Sequence[Any]) -> Mapping[str, Metric]:
    """The metrics, by name, of rows like the first of `truth`."""
    first = truth[0] if truth else ""
    if isinstance(first, frozenset):
        return OF_LABELS
    if isinstance(first, tuple):
        return OF_TAGS
    if isinstance(first, TextScore):
        return OF_TEXT
    return OF_LABEL if isinstance(first, str) else OF_NUMBER


def _columns(*columns: Any) -> Statistics:
    """Dense: one array (rows,) per sum."""
    table = np.stack([np.asarray(column, np.float64) for column in columns])
    rows = np.arange(table.shape[1])
    return Statistics(
        rows=np.tile(rows, len(columns)),
        columns=np.repeat(np.arange(len(columns)), len(rows)),
        values=table.ravel(),
        size=len(columns),
    )


def _hits(truth: Sequence[Any], prediction: Sequence[Any]) -> Statistics:
    return _columns([t == p for t, p in zip(truth, prediction, strict=True)], np.ones(len(truth)))


def _per_label(truth: Sequence[Any], prediction: Sequence[Any]) -> Statistics:
    """How often each label is said rightly; behind these, how often it is said or true."""
    pairs = [
        ((t,), (p,)) if isinstance(t, str) else (t, p)
        for t, p in zip(truth, prediction, strict=True)
    ]
    names = {name for pair in pairs for side in pair for name in side}
    code = {name: number for number, name in enumerate(sorted(names))}
    rows: list[int] = []
    columns: list[int] = []
    for row, (t, p) in enumerate(pairs):
        found = [code[n] for n in t if n in p]
        found += [len(code) + code[n] for side in (t, p) for n in side]
        rows += [row] * len(found)
        columns += found
    return Statistics(
        rows=np.asarray(rows, np.intp),
        columns=np.asarray(columns, np.intp),
        values=np.ones(len(rows)),
        size=2 * len(code),
    )


def _of_rarest(truth: Sequence[Any], prediction: Sequence[Any]) -> Statistics:
    """Rows of the label that is rarest in `truth` (the first by name among equals): how many are
    answered rightly, and how many there are.
    """
    counts = Counter(truth)
    rarest = min(counts, key=lambda label: (counts[label], label), default=None)
    pairs = zip(truth, prediction, strict=True)
    return _columns([t == rarest == p for t, p in pairs], [t == rarest for t in truth])


def _per_word(truth: Sequence[Any], prediction: Sequence[Any]) -> Statistics:
    pairs = zip(truth, prediction, strict=True)
    hits = [sum(a == b for a, b in zip(t, p, strict=True)) for t, p in pairs]
    return _columns(hits, [len(t) for t in truth])


def _per_entity(truth: Sequence[Any], prediction: Sequence[Any]) -> Statistics:
    true, found = [entities(tags) for tags in truth], [entities(tags) for tags in prediction]
    hits = [len(t & f) for t, f in zip(true, found, strict=True)]
    return _columns(hits, [len(t) + len(f) for t, f in zip(true, found, strict=True)])


def _errors(truth: Sequence[Any], prediction: Sequence[Any]) -> Statistics:
    wanted, said = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    errors = said - wanted
    # Taken from the mean, squares of large numbers do not cancel. Equal ones are exactly equal.
    is_spread = len(wanted) and wanted.min() < wanted.max()
    centred = wanted - wanted.mean() if is_spread else np.zeros(len(wanted))
    return _columns(errors**2, np.abs(errors), centred, centred**2, np.ones(len(wanted)))


def _per_token(truth: Sequence[Any], prediction: Sequence[Any]) -> Statistics:
    del truth
    return _columns(*([getattr(p, n) for p in prediction] for n in ("hits", "tokens", "nll")))


def _share(sums: Array) -> float | None:
    return float(sums[0] / sums[1]) if sums[1] else None


def _f1(sums: Array) -> float | None:
    return float(2 * sums[0] / sums[1]) if sums[1] else None


def _halves(sums: Array) -> tuple[Array, Array]:
    return sums[: len(sums) // 2], sums[len(sums) // 2 :]


def _macro_f1(sums: Array) -> float | None:
    """Mean F1 over the labels that occur in truth or prediction."""
    hits, seen = _halves(sums)
    occurs = seen > 0
    return float((2 * hits[occurs] / seen[occurs]).mean()) if occurs.any() else None


def _micro_f1(sums: Array) -> float | None:
    hits, seen = _halves(sums)
    return float(2 * hits.sum() / seen.sum()) if seen.sum() else None


def _r2(sums: Array) -> float | None:
    """1 - squared error / squared distance from the mean of these rows."""
    squares, _, total, total_squares, rows = sums
    spread = total_squares - total**2 / rows if rows else 0.0
    return float(1 - squares / spread) if spread > 1e-12 * total_squares else None


def _out_of(sums: Array) -> float:
    return float(sums[1])


OF_LABEL: Mapping[str, Metric] = {
    "accuracy": Metric(_hits, _share, _out_of),
    "macro_f1": Metric(_per_label, _macro_f1),
    "minority_recall": Metric(_of_rarest, _share, _out_of),
}
OF_LABELS: Mapping[str, Metric] = {
    "accuracy": Metric(_hits, _share, _out_of),
    "macro_f1": Metric(_per_label, _macro_f1),
    "micro_f1": Metric(_per_label, _micro_f1),
}
OF_TAGS: Mapping[str, Metric] = {
    "accuracy": Metric(_per_word, _share),
    "entity_f1": Metric(_per_entity, _f1),
}
OF_NUMBER: Mapping[str, Metric] = {
    "r2": Metric(_errors, _r2),
    "negative_mae": Metric(_errors, lambda s: float(-s[1] / s[4]) if s[4] else None),
    "negative_rmse": Metric(_errors, lambda s: float(-((s[0] / s[4]) ** 0.5)) if s[4] else None),
}
OF_TEXT: Mapping[str, Metric] = {
    "negative_loss": Metric(_per_token, lambda s: float(-s[2] / s[1]) if s[1] else None),
    "token_accuracy": Metric(_per_token, _share),
}
# Of rows, or what is near one: a standard error says what they may be by chance.
SHARES = frozenset({*OF_LABEL, *OF_LABELS, *OF_TAGS})
METRICS = sorted({*OF_LABEL, *OF_LABELS, *OF_TAGS, *OF_NUMBER, *OF_TEXT})


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first, last, type) of the entities in the BIO or IO tags of one row. As conlleval counts: an
    I- of another type, or behind an O, begins an entity; where there is one type only, tags may
    leave it out.
    Source: Tjong Kim Sang and De Meulder, CoNLL-2003.
    """
    found: set[tuple[int, int, str]] = set()
    begun: int = -1
    kind: str | None = None
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = prefix == "I" and name == kind
        if kind is not None and not goes_on:
            found.add((begun, place - 1, kind))
            kind = None
        if prefix in {"B", "I"} and not goes_on:
            begun, kind = place, name
    return found
