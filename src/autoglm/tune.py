"""What a search may choose from, in Python: `space = {"lr": tune.loguniform(1e-4, 1e-2)}`.

The names and bounds are Ray Tune's, whose own objects may stand in a space as well: `randint` and
`lograndint` leave their upper bound out, what has a `q` includes it and yields multiples of `q`.
Nothing is judged here; whoever reads the space says what is wrong, and of which dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = [
    "Domain", "choice", "grid_search", "lograndint", "loguniform", "qlograndint", "qloguniform",
    "qrandint", "quniform", "randint", "uniform",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Domain:
    """`kind` and `arguments` as YAML writes them: `{loguniform: [1e-4, 1e-2]}`."""

    kind: str
    arguments: tuple[Any, ...]
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def when(self, conditions: Mapping[str, Any] | None = None, **names: Any) -> Domain:
        """Asked only where every condition holds; a value, a list of values, `{"above": x}`."""
        return replace(self, conditions={**self.conditions, **(conditions or {}), **names})


def choice(categories: Sequence[Any]) -> Domain:
    return Domain("choice", tuple(categories))


def grid_search(values: Sequence[Any]) -> Domain:
    """As `choice`: which values are tried when is the sampler's."""
    return Domain("choice", tuple(values))


def uniform(lower: float, upper: float) -> Domain:
    return Domain("uniform", (lower, upper))


def loguniform(lower: float, upper: float) -> Domain:
    return Domain("loguniform", (lower, upper))


def quniform(lower: float, upper: float, q: float) -> Domain:
    return Domain("quniform", (lower, upper, q))


def qloguniform(lower: float, upper: float, q: float) -> Domain:
    return Domain("qloguniform", (lower, upper, q))


def randint(lower: int, upper: int) -> Domain:
    return Domain("randint", (lower, upper))


def lograndint(lower: int, upper: int) -> Domain:
    return Domain("lograndint", (lower, upper))


def qrandint(lower: int, upper: int, q: int = 1) -> Domain:
    return Domain("qrandint", (lower, upper, q))


def qlograndint(lower: int, upper: int, q: int) -> Domain:
    return Domain("qlograndint", (lower, upper, q))
