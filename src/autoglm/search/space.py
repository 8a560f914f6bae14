"""`{lr: {loguniform: [1e-5, 1e-3]}}` → dimensions whose names are config keys."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoglm.errors import SearchError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# Sections that one backbone reads: `num_layers` alone is the structure's, theirs `conv.num_layers`.
OF_ONE_BACKBONE = ("model.conv.", "model.recurrent.")
KINDS = ("choice", "uniform", "loguniform", "quniform", "randint")


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """`key` is a dotted config key; `arguments` are the kind's: choices, or low, high (, step)."""

    key: str
    kind: str
    arguments: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether `value` is a point of this dimension."""
        if self.kind == "choice":
            return bool(value in self.arguments)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        low, high = self.arguments[:2]
        if self.kind == "randint":
            return bool(low <= value < high)
        if self.kind == "quniform":
            steps = (value - low) / self.arguments[2]
            return bool(low <= value <= high and abs(steps - round(steps)) < 1e-9)
        return bool(low <= value <= high)


def read_space(space: Mapping[str, Any], keys: Sequence[str]) -> tuple[Dimension, ...]:
    """Dimensions of `space`, each named by one of `keys` or by its unique last part.

    Raises: SearchError for an unknown or ambiguous name, an unknown kind, wrong bounds, or an
    empty space.
    """
    if not space:
        raise _refused("the search space is empty.", "Give search.space at least one dimension.")
    dimensions = [_dimension(name, said, keys) for name, said in _flat(space)]
    seen: set[str] = set()
    for dimension in dimensions:
        if dimension.key in seen:
            raise _refused(f"{dimension.key} stands twice in the search space.", "Keep one.")
        seen.add(dimension.key)
    return tuple(sorted(dimensions, key=lambda d: d.key))


def _flat(space: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    """Nested maps (`training: {lr: …}`) read as dotted names."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name, said in space.items():
        if not isinstance(said, Mapping):
            raise _refused(
                f"search.space.{prefix}{name} = {said!r} is no dimension.",
                f"Write {{KIND: […]}} with KIND one of {', '.join(KINDS)}.",
            )
        if len(said) == 1 and not isinstance(next(iter(said.values())), Mapping):
            found.append((prefix + name, said))
        else:
            found += _flat(said, f"{prefix}{name}.")
    return found


def _dimension(name: str, said: Mapping[str, Any], keys: Sequence[str]) -> Dimension:
    key = resolve(name, keys)
    ((kind, arguments),) = said.items()
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise _refused(
            f"search.space.{name}: unknown kind {kind!r}.",
            f"Did you mean {near[0]}?" if near else f"Known: {', '.join(KINDS)}.",
        )
    values = tuple(arguments) if isinstance(arguments, (list, tuple)) else (arguments,)
    problem = _problem(kind, values)
    if problem:
        raise _refused(f"search.space.{name}: {kind} {list(values)}: {problem}.", "")
    return Dimension(key=key, kind=kind, arguments=values)


def resolve(name: str, keys: Sequence[str]) -> str:
    """The config key of this name, or of this unique last part. Raises: SearchError."""
    if name in keys:
        return name
    matches = [key for key in keys if key.endswith("." + name)]
    if len(matches) > 1:
        matches = [k for k in matches if not k.startswith(OF_ONE_BACKBONE)] or matches
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise _refused(f"dimension {name!r} is ambiguous: {', '.join(matches)}.", "Write it whole.")
    lasts = {key.rpartition(".")[2]: key for key in keys}
    near = difflib.get_close_matches(name, [*lasts, *keys], n=1)
    raise _refused(
        f"nobody reads a dimension {name!r}.",
        f"Did you mean {near[0]}?" if near else f"Searchable: {', '.join(sorted(lasts))}.",
    )


def _problem(kind: str, values: tuple[Any, ...]) -> str:
    if kind == "choice":
        return "" if values else "needs at least one value"
    wanted = 3 if kind == "quniform" else 2
    are_numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    if len(values) != wanted or not are_numbers:
        return f"needs {wanted} numbers"
    if values[0] > values[1]:
        return "the lower bound is above the upper one"
    if kind == "loguniform" and values[0] <= 0:
        return "a logarithmic range starts above 0"
    if kind == "quniform" and values[2] <= 0:
        return "the step must be above 0"
    if kind == "randint" and not all(float(v).is_integer() for v in values):
        return "needs whole numbers"
    return "randint needs low < high" if kind == "randint" and values[0] == values[1] else ""


def distributions(dimensions: Sequence[Dimension]) -> dict[str, BaseDistribution]:
    """The Optuna form. `randint` excludes its upper bound, as Ray Tune and Python's range do."""
    from optuna import distributions as d

    make: dict[str, Callable[..., BaseDistribution]] = {
        "choice": lambda *v: d.CategoricalDistribution(v),
        "uniform": lambda low, high: d.FloatDistribution(low, high),
        "loguniform": lambda low, high: d.FloatDistribution(low, high, log=True),
        "quniform": lambda low, high, step: d.FloatDistribution(low, high, step=step),
        "randint": lambda low, high: d.IntDistribution(int(low), int(high) - 1),
    }
    return {x.key: make[x.kind](*x.arguments) for x in dimensions}


def num_points(dimensions: Sequence[Dimension]) -> int | None:
    """How many different trials there can be; None when a dimension is continuous."""
    total = 1
    for dimension in dimensions:
        if dimension.kind not in {"choice", "randint"}:
            return None
        arguments = dimension.arguments
        is_choice = dimension.kind == "choice"
        total *= len(arguments) if is_choice else int(arguments[1]) - int(arguments[0])
    return total


def _refused(message: str, next_step: str) -> SearchError:
    error = SearchError(message, code="search.space", next_step=next_step)
    error.exit_code = 2  # type: ignore[misc]
    return error
