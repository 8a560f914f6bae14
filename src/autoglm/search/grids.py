"""What two ranges have in common: of stepped ones the points of both grids, never others."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from autoglm.search.space import Dimension


def common(wide: Dimension, narrow: Dimension) -> Dimension | None:
    """`wide` with the points that `narrow` has too; None without any. Neither has choices."""
    low, high = max(wide.low, narrow.low), min(wide.high, narrow.high)
    is_whole = wide.is_whole or narrow.is_whole
    if not wide.step and not narrow.step:
        return replace(wide, low=low, high=high) if low <= high else None
    grids = [each for each in (wide, narrow) if each.step]
    start, step = _exact(grids[0].low), _exact(grids[0].step)
    for other in grids[1:]:
        met = _meet(start, step, _exact(other.low), _exact(other.step))
        if met is None:
            return None
        start, step = met
    first = start + math.ceil((_exact(low) - start) / step) * step
    last = start + math.floor((_exact(high) - start) / step) * step
    if first > last:
        return None
    number = int if is_whole else float
    return replace(
        wide, low=number(first), high=number(last), step=number(step), is_whole=is_whole
    )  # fmt: skip


def _exact(number: float) -> Fraction:
    """As it is written: 0.1 is a tenth."""
    return Fraction(repr(number))


def _meet(
    start: Fraction, step: Fraction, other_start: Fraction, other_step: Fraction
) -> tuple[Fraction, Fraction] | None:
    """A point of both progressions and the distance to the next; None where they never meet.

    In multiples of what divides all four, start + k * step = other_start (mod other_step) is a
    congruence of whole numbers.
    """
    unit = math.lcm(*(each.denominator for each in (start, step, other_start, other_step)))
    begin, stride, target, modulus = (
        int(each * unit) for each in (start, step, other_start, other_step)
    )
    shared = math.gcd(stride, modulus)
    if (target - begin) % shared:
        return None
    num = (target - begin) // shared * pow(stride // shared, -1, modulus // shared)
    met = begin + num % (modulus // shared) * stride
    return Fraction(met, unit), Fraction(math.lcm(stride, modulus), unit)
