"""`when: {trainable_layers: [0, 1], lora_rank: {above: 0}}`: where a dimension counts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from autoglm.errors import SearchError
from autoglm.search.spellings import refused

if TYPE_CHECKING:
    from autoglm.search.space import Dimension

BOUNDS = ("above", "below")


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """Of the value in force of `key`: one of `values`, or strictly between the bounds."""

    key: str
    values: tuple[Any, ...] = ()
    above: float | None = None
    below: float | None = None

    def holds(self, in_force: Mapping[str, Any]) -> bool:
        value = in_force.get(self.key)
        if self.above is None and self.below is None:
            return any(value == each and _kind(value) == _kind(each) for each in self.values)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return (self.above is None or value > self.above) and (
            self.below is None or value < self.below
        )

    def __str__(self) -> str:
        if self.values:
            return f"{self.key} is {' or '.join(map(repr, self.values))}"
        bounds = [f"{name} {b:g}" for name in BOUNDS if (b := getattr(self, name)) is not None]
        return f"{self.key} is {' and '.join(bounds)}"


def _kind(value: Any) -> bool:
    """`true` is not 1."""
    return isinstance(value, bool)


def read_conditions(
    name: str,
    said: Mapping[str, Any],
    resolve: Callable[[str], str],
    held: Callable[[str, Any], Any],
) -> tuple[Condition, ...]:
    """`held(key, value)` is a value as its key holds it. Raises: SearchError search.unknown_key,
    search.condition.
    """
    found = []
    for parent, wanted in said.items():
        key = resolve(parent)
        found.append(_condition(name, parent, key, wanted, partial(held, key)))
    return tuple(found)


def _condition(
    name: str, parent: str, key: str, wanted: Any, held: Callable[[Any], Any]
) -> Condition:
    if not isinstance(wanted, Mapping):
        values = tuple(wanted) if isinstance(wanted, (list, tuple)) else (wanted,)
        if values:
            return Condition(key=key, values=tuple(map(held, values)))
    elif wanted and wanted.keys() <= {*BOUNDS}:
        bounds = {which: held(bound) for which, bound in wanted.items()}
        if all(map(_is_number, bounds.values())):
            return Condition(key=key, **bounds)
    raise refused(
        f"search.space.{name}.when: {parent}: {wanted!r} is no condition.",
        "Write a value, a list of values, {above: NUMBER} or {below: NUMBER}.",
        "search.condition",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def in_order(
    dimensions: Mapping[str, Dimension], elsewhere: Collection[str] = ()
) -> tuple[Dimension, ...]:
    """What a condition asks of comes before what it decides; else as they stand. `elsewhere` are
    keys of dimensions that the space names beside these.

    Raises: SearchError search.condition for a circle, for a condition on what is no dimension, or
    for one that no point fulfils.
    """
    left, order = dict(dimensions), []
    while left:
        free = [d for d in left.values() if not any(c.key in left for c in d.when)]
        if not free:
            raise refused(
                f"these dimensions wait for each other: {', '.join(left)}.",
                "Take one of their `when` out.",
                "search.condition",
            )
        order.append(free[0])
        del left[free[0].key]
    for dimension in order:
        for condition in dimension.when:
            _possible(dimension, condition, dimensions, elsewhere)
    return tuple(order)


def _possible(
    dimension: Dimension,
    condition: Condition,
    dimensions: Mapping[str, Dimension],
    elsewhere: Collection[str],
) -> None:
    parent = dimensions.get(condition.key)
    if parent is None:
        if condition.key not in elsewhere:
            others = {*dimensions, *elsewhere} - {dimension.key}
            raise _no_dimension(dimension.key, condition, others)
        return  # whoever took it out knows its value
    if not parent.when and not can_hold(condition, parent):  # else the project's own value may do
        raise refused(
            f"{dimension.key} would never be asked: no point of {parent} fulfils its condition,"
            f" {condition}.",
            "Correct the condition, or take the dimension out.",
            "search.condition",
        )


def can_hold(condition: Condition, parent: Dimension) -> bool:
    """Whether a point of `parent` fulfils the condition."""
    if parent.choices or condition.values:
        points = parent.choices or condition.values
        return any(parent.holds(p) and condition.holds({parent.key: p}) for p in points)
    if (every := parent.points()) is not None:
        return any(condition.holds({parent.key: point}) for point in every)
    low, high = condition.above, condition.below
    if low is not None and high is not None and low >= high:
        return False
    return (low is None or low < parent.high) and (high is None or high > parent.low)


def _no_dimension(name: str, condition: Condition, others: Collection[str]) -> SearchError:
    shown = sorted(key.rpartition(".")[2] for key in others)
    near = difflib.get_close_matches(condition.key.rpartition(".")[2], shown, n=1)
    known = f"Did you mean {near[0]}?" if near else f"Others are: {', '.join(shown) or 'none'}."
    return refused(
        f"search.space: {name} is asked when {condition}, and {condition.key} is no dimension of"
        " the space: it has one value in all trials.",
        f"{known} Or take the condition out.",
        "search.condition",
    )
