"""What a study tries before its sampler has learnt anything.

1. The project's own values: numbers outside the space are moved to its nearest point.
2. The reach: the same with as many layers learning, and for as many epochs, as the space allows. A
   study that begins with what is cheap comes there last or never, and it is where most end up. With
   more layers learning each wants a smaller rate: own · sqrt(own layers / most layers), which is a
   rule of thumb.
3. The short reach: as many layers, half as many epochs, at the project's own rate (rate · epochs is
   about that of the reach): for where the rule of thumb is wrong, at half of the cost.

Where the space holds only more layers than the project's own, the first point is moved there, at
the project's own rate; the others follow it all the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autoglm.search.space import Dimension

LAYERS, EPOCHS, LR = "training.trainable_layers", "training.epochs", "training.lr"


def first_points(
    dimensions: Sequence[Dimension], own: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The project's own point, and those that reach further, by key; a dimension in which the
    project's own value has no place is left to the sampler.
    """
    near = {d.key: nearest(d, own[d.key]) for d in dimensions if d.key in own}
    first = {key: point for key, point in near.items() if point is not None}
    reach = dict(first)
    for dimension in dimensions:
        if dimension.key in {LAYERS, EPOCHS} and _is_number(most := _most(dimension)):
            reach[dimension.key] = most
    layers, most_layers = own.get(LAYERS), reach.get(LAYERS)
    at = {dimension.key: dimension for dimension in dimensions}
    if LR not in first or not layers or not most_layers:
        return first, [reach] if reach != first else []
    if reach == first and layers >= most_layers:
        return first, []
    smaller = min(first[LR] * math.sqrt(layers / most_layers), first[LR])
    slower = {**reach, LR: nearest(at[LR], smaller)}
    short = dict(reach)
    if EPOCHS in reach:
        short[EPOCHS] = nearest(at[EPOCHS], reach[EPOCHS] / 2)
    further = [slower, short] if slower[LR] != short[LR] else [slower]
    return first, [point for point in further if point != first]


def nearest(dimension: Dimension, value: Any) -> Any:
    """The point next to `value`, of two equally near ones the higher; None where `value` is no
    number and no point.
    """
    if dimension.holds(value):
        return value
    if not _is_number(value):
        return None
    points = dimension.points()
    if points is not None:
        numbers = [point for point in points if _is_number(point)]
        return min(numbers, key=lambda point: (abs(point - value), -point), default=None)
    inside = min(max(value, dimension.low), dimension.high)
    if dimension.step:
        return dimension.point(inside)
    return round(inside) if dimension.is_whole else inside


def _most(dimension: Dimension) -> Any:
    points = dimension.points()
    if points is None:
        return dimension.last() if dimension.step else dimension.high
    return max((point for point in points if _is_number(point)), default=None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
