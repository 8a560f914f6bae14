"""What an evaluator says of a perfect prediction and of constant ones, asked before any training:
whether its sign can be meant, and whether it can tell a model that knows something from one that
says the same of every row.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoglm.contracts.task import TextScore
from autoglm.evaluation.asking import needs_proba, value_of
from autoglm.evaluation.evaluator import MetricEvaluator
from autoglm.plugins.kinds import Evaluator

# Constant predictions that are tried, the commonest answers first.
MOST_CONSTANTS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """`best_constant` is the best value that one answer for all rows gets, `constant` says which.
    Values are None where undefined; `warning` is empty for a sound evaluator.
    """

    evaluator: str
    perfect: float | None
    best_constant: float | None
    constant: str
    warning: str


def probe(evaluator: Evaluator, name: str, truth: Sequence[Any]) -> Probed:
    """Ask it on the rows that it will judge. Raises: PluginError when it raises, gives no number or
    something else (evaluation.asking).
    """
    has_shares = needs_proba(evaluator)
    labels = sorted({label for answer in truth for label in _labels(answer)}) if has_shares else []
    said = [_sure(answer, labels) for answer in truth] if has_shares else list(truth)
    perfect = value_of(evaluator, truth, _perfect(said))
    best, which = None, ""
    for words, constant in _constants(truth, labels):
        value = value_of(evaluator, truth, constant)
        if value is not None and (best is None or value > best):
            best, which = value, words
    return Probed(
        evaluator=name,
        perfect=perfect,
        best_constant=best,
        constant=which,
        warning=_warning(evaluator, name, perfect, best, which),
    )


def _warning(
    evaluator: Evaluator, name: str, perfect: float | None, constant: float | None, which: str
) -> str:
    if perfect is None:
        return f"{name} has no value for these rows, not even of a perfect prediction."
    if constant is None or constant < perfect:
        return ""
    if constant == perfect:
        return (
            f"{name} gives {constant:.4g} to a model that says {which} of every row, as much as to"
            " a perfect one: it cannot tell them apart."
        )
    mend = (
        "" if isinstance(evaluator, MetricEvaluator)
        else " If smaller is better in it, say so: greater_is_better=False."
    )  # fmt: skip
    return (
        f"{name} gives {constant:.4g} to a model that says {which} of every row and"
        f" {perfect:.4g} to a perfect one: its sign is wrong.{mend}"
    )


def _labels(answer: Any) -> Sequence[str]:
    return [answer] if isinstance(answer, str) else sorted(answer)


def _sure(answer: Any, labels: Sequence[str]) -> Mapping[str, float]:
    said = {answer} if isinstance(answer, str) else answer
    return {label: float(label in said) for label in labels}


def _perfect(said: list[Any]) -> list[Any]:
    if isinstance(said[0], TextScore):
        return [TextScore(0.0, row.tokens, row.tokens) for row in said]
    return said


def _constants(truth: Sequence[Any], labels: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """What is said, in words, and the predictions."""
    first = truth[0]
    if isinstance(first, TextScore):
        # As if every word of a large vocabulary were alike likely.
        yield "nothing", [TextScore(10.0 * row.tokens, row.tokens, 0) for row in truth]
    elif isinstance(first, float):
        for number in dict.fromkeys((statistics.fmean(truth), statistics.median(truth), 0.0)):
            yield f"{number:.4g}", [number] * len(truth)
    elif isinstance(first, tuple):
        tags = Counter(tag for answer in truth for tag in answer)
        for tag, _ in tags.most_common(MOST_CONSTANTS):
            yield repr(tag), [(tag,) * len(answer) for answer in truth]
    else:
        counts = Counter(truth)
        if isinstance(first, frozenset):
            counts[frozenset()] += 0
        for answer, _ in counts.most_common(MOST_CONSTANTS):
            words = repr(answer) if isinstance(answer, str) else "+".join(sorted(answer)) or "none"
            yield words, [_sure(answer, labels) if labels else answer] * len(truth)
        if labels:
            even = dict.fromkeys(labels, 1.0 / len(labels))
            yield "all labels alike", [even] * len(truth)
