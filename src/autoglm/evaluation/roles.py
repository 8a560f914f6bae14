"""What each evaluator is for: the objective picks and gates, a constraint can only refuse, a
report only tells.

evaluate: {metric: macro_f1, metrics: {minority_recall: {at_least: 60%}, accuracy: report}}
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autoglm.errors import ConfigError

# Measured of the exported folder, not of answers.
LATENCY, SIZE = "latency_ms", "size_bytes"
MEASURED = (LATENCY, SIZE)
_BOUNDS = ("at_least", "at_most")
_UNIT = {"%": 1e-2, "us": 1e-3, "ms": 1.0, "s": 1e3} | {
    "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
}  # fmt: skip
_OF: Mapping[str, tuple[str, ...]] = {
    LATENCY: ("us", "ms", "s"),
    SIZE: ("B", "kB", "MB", "GB", "KiB", "MiB", "GiB"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """`at_least` and `at_most` are set for a constraint, one or both."""

    name: str
    role: Literal["objective", "constraint", "report"]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        """As people read it; empty without."""
        said = [("at least", self.at_least), ("at most", self.at_most)]
        return " and ".join(f"{words} {value:.6g}" for words, value in said if value is not None)

    def missed(self, value: float | None) -> str:
        """How `value` misses the constraint; empty when it holds. A value that is undefined shows
        nothing: `is_unknown` says so.
        """
        if value is None or self.role != "constraint":
            return ""
        is_low = self.at_least is not None and value < self.at_least
        is_high = self.at_most is not None and value > self.at_most
        return f"{self.name} {value:.6g}, {self.bound}" if is_low or is_high else ""

    def is_unknown(self, value: float | None) -> bool:
        return self.role == "constraint" and (value is None or math.isnan(value))


def read_roles(metrics: Mapping[str, Any]) -> tuple[Role, ...]:
    """The entries of `evaluate.metrics`. Raises: ConfigError config.wrong_value."""
    roles = tuple(_role(str(name), said) for name, said in metrics.items())
    objectives = [role.name for role in roles if role.role == "objective"]
    if len(objectives) > 1:
        raise _wrong(
            f"evaluate.metrics: {' and '.join(objectives)} are both the objective.",
            "One picks and gates; make the other a constraint, or a report.",
        )
    return roles


def objective(metric: str, metrics: Mapping[str, Any]) -> str:
    """The evaluator that picks and gates: evaluate.metric, or the one whose role it is; `auto`
    where neither is said. Raises: ConfigError when they contradict each other.
    """
    roles = read_roles(metrics)
    named = next((role.name for role in roles if role.role == "objective"), "")
    if named and metric not in ("auto", named):
        raise _wrong(
            f"evaluate.metric is {metric}, evaluate.metrics makes {named} the objective.",
            "Say one of them.",
        )
    return named or metric


def _role(name: str, said: Any) -> Role:
    if said in ("objective", "report"):
        if said == "objective" and name in MEASURED:
            raise _wrong(
                f"evaluate.metrics.{name}: it is measured of the exported model, when the search is"
                " over.",
                "Make it a constraint ({at_most: …}) or a report.",
            )
        return Role(name=name, role=said)
    if not isinstance(said, Mapping) or not said or set(said) - set(_BOUNDS):
        raise _wrong(
            f"evaluate.metrics.{name} = {said!r:.80} is no role.",
            "Write objective, report, {at_least: 0.6} or {at_most: 20ms}.",
        )
    bounds = {bound: _number(name, bound, said[bound]) for bound in _BOUNDS if bound in said}
    if len(bounds) == 2 and bounds["at_least"] > bounds["at_most"]:
        raise _wrong(
            f"evaluate.metrics.{name}: nothing is at least {bounds['at_least']:g} and at most"
            f" {bounds['at_most']:g}.",
            "Exchange them, or leave one out.",
        )
    return Role(name=name, role="constraint", **bounds)


def _number(name: str, bound: str, said: Any) -> float:
    """A number, or one with a unit that its evaluator has: a share, a time, a size."""
    units = _OF.get(name, ("%",))
    match = re.fullmatch(r"\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(\S*)\s*", str(said))
    number = math.nan
    if match is not None and not isinstance(said, bool) and (not match[2] or match[2] in units):
        try:
            number = float(match[1]) * _UNIT.get(match[2], 1.0)
        except ValueError:
            number = math.nan
    if not math.isfinite(number):
        raise _wrong(
            f"evaluate.metrics.{name}.{bound} = {said!r:.40} is no bound.",
            f"Write a number, or one with a unit: {', '.join(units)}.",
        )
    return number


def _wrong(message: str, next_step: str) -> ConfigError:
    return ConfigError(message, code="config.wrong_value", next_step=next_step)
