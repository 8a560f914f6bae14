"""`{lr: {loguniform: [1e-5, 1e-3]}}` → dimensions whose names are config keys."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autoglm.config.schema import bare
from autoglm.config.values import accepted
from autoglm.errors import AutoGLMError
from autoglm.plugins import registry
from autoglm.search.conditions import Condition, in_order, read_conditions
from autoglm.search.spellings import KINDS, WHEN, plain_space, refused

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# A finite space larger than this is not counted.
MOST_POINTS = 4096
# What other trainers call a key of ours: known only to whoever misses it.
ELSEWHERE = {
    "gradient_accumulation_steps": "accumulation",
    "label_smoothing_factor": "label_smoothing",
    "learning_rate": "lr",
    "lr_scheduler_type": "schedule",
    "max_grad_norm": "clip_norm",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "optim": "optimizer",
    "per_device_train_batch_size": "batch_size",
    "warmup_ratio": "warmup",
}
# Between two points of a grid that rounding has moved.
NEAR = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """`key` is a dotted config key. Either `choices`, or numbers from `low` to `high`, both of
    them points: all of them, or with a `step` those at low, low + step, …

    Asked only where every one of `when` holds; else the project's own value stands.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float = 0
    is_log: bool = False
    is_whole: bool = False
    when: tuple[Condition, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether `value` is a point of this dimension."""
        if self.choices:
            return _coded(value) in map(_coded, self.choices)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0
        return abs(steps - round(steps)) < NEAR

    def points(self) -> tuple[Any, ...] | None:
        """Every point, None when there are too many to count."""
        if self.choices:
            return self.choices
        if self.low == self.high:
            return (self.point(self.low),)
        if not self.step or (num := self._num_steps() + 1) > MOST_POINTS:
            return None
        return tuple(self._at(index) for index in range(num))

    def distribution(self) -> BaseDistribution:
        """The Optuna form, of which `point` and `told` know the values."""
        from optuna import distributions as d

        if self.choices:
            return d.CategoricalDistribution(tuple(map(self.told, self.choices)))
        step = None if self.is_log else self.step or None  # Optuna has no steps on a log scale
        if self.is_whole:
            return d.IntDistribution(
                int(self.low), int(self.high), log=self.is_log, step=int(step or 1)
            )
        return d.FloatDistribution(self.low, self.high, log=self.is_log, step=step)

    def point(self, told: Any) -> Any:
        """What Optuna said → the value of the key."""
        if self.choices:
            return point_of(told)
        if not self.step:
            return told
        return self._at(min(round((told - self.low) / self.step), self._num_steps()))

    def told(self, point: Any) -> Any:
        """The inverse of `point`. What Optuna does not take as a choice goes in as JSON."""
        is_scalar = point is None or isinstance(point, (bool, int, float, str))
        return point if is_scalar and not _is_coded(point) else CODE + _coded(point)

    def last(self) -> Any:
        """The highest point of a grid."""
        return self._at(self._num_steps())

    def _num_steps(self) -> int:
        return math.floor((self.high - self.low) / self.step + NEAR)

    def _at(self, index: int) -> Any:
        # 12 digits: 0.1 + 2 * 0.1 is 0.3, as whoever wrote the bounds means it.
        value = float(f"{self.low + index * self.step:.12g}")
        return int(value) if self.is_whole else value

    def __str__(self) -> str:
        step = f" in steps of {self.step:g}" if self.step else ""
        log = " logarithmic" if self.is_log else ""
        of = list(self.choices) if self.choices else f"{self.low:g} … {self.high:g}{log}{step}"
        only = " and ".join(map(str, self.when))
        return f"{self.key}: {of}" + (f" when {only}" if only else "")


# Marks a choice that is kept as JSON.
CODE = "json:"


def _is_coded(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(CODE)


def point_of(told: Any) -> Any:
    """What Optuna was told of a choice → the value of the key."""
    return json.loads(told[len(CODE) :]) if _is_coded(told) else told


def _coded(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=list)


def space_said(space: str | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The space in the one form that JSON keeps; a text names one that a part of kind `space`
    gives. Raises: PluginError, SearchError.
    """
    if isinstance(space, str):
        space = _named(space)
    if not isinstance(space, Mapping):
        raise refused(f"the search space {space!r} is no map of dimensions.", "See docs/search.md.")
    return plain_space(space)


def _named(name: str) -> Any:
    part = registry.get("space", name)
    if not callable(part):
        return part
    try:
        return part()
    except AutoGLMError:
        raise
    except (Exception, SystemExit) as error:  # it is code of the project's
        told = f"space:{name} gave no space: {type(error).__name__}: {error}."
        raise refused(told, "Correct the function that is registered.") from error


def read_space(
    space: str | Mapping[str, Any],
    keys: Collection[str] | Mapping[str, Any],
    elsewhere: Collection[str] = (),
) -> tuple[Dimension, ...]:
    """Dimensions of `space`, in the order in which they can be asked, each named by one of `keys`
    or by its unique last part. Keys with annotations: no point may be one that its key refuses.
    `elsewhere` are keys that a condition may ask of though they are not of this space.

    Raises: SearchError search.empty, search.unknown_key (or an ambiguous one), search.bounds,
    search.value, search.condition, and search.space for what cannot be read.
    """
    said = space_said(space)
    if not said:
        raise refused(
            "the search space is empty.",
            "Give search.space at least one dimension.",
            "search.empty",
        )
    found: dict[str, Dimension] = {}
    for name, plain in said.items():
        dimension = _dimension(name, plain, keys, elsewhere)
        if dimension.key in found:
            raise refused(f"{dimension.key} stands twice in the search space.", "Keep one.")
        found[dimension.key] = dimension
    return in_order({key: found[key] for key in sorted(found)}, elsewhere)


def _dimension(
    name: str, plain: Mapping[str, Any], keys: Collection[str], elsewhere: Collection[str]
) -> Dimension:
    key = resolve(name, keys)
    (kind,) = plain.keys() - {WHEN}
    values = plain[kind]
    problem = _problem(kind, values)
    if problem:
        told = f"search.space.{name}: {kind} {values}: {problem}."
        raise refused(told, "See docs/search.md.", "search.bounds")
    made = _made(key, kind, values)
    if isinstance(keys, Mapping):
        made = _fitted(made, name, keys[key])
    known = [*keys, *(key for key in elsewhere if key not in keys)]
    when = read_conditions(
        name,
        plain.get(WHEN, {}),
        lambda parent: resolve(parent, known),
        lambda parent, value: _held(keys, parent, value),
    )
    return replace(made, when=when)


def resolve(name: str, keys: Collection[str]) -> str:
    """The config key of this name, or of this unique last part. Raises: SearchError."""
    if name in keys:
        return name
    asked = re.sub(r"(^|\.)n_layers$", r"\1num_layers", name)
    matches = [key for key in keys if key == asked or key.endswith("." + asked)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        told = f"dimension {name!r} is ambiguous: {', '.join(matches)}."
        raise refused(told, "Write it whole.", "search.unknown_key")
    lasts = {key.rpartition(".")[2]: key for key in keys}
    others = {other: key for other, key in ELSEWHERE.items() if key in lasts}
    close = difflib.get_close_matches(name, [*lasts, *keys, *others], n=1)
    near = [others.get(each, each) for each in close]
    raise refused(
        f"nobody reads a dimension {name!r}.",
        f"Did you mean {near[0]}?" if near else f"Searchable: {', '.join(sorted(lasts))}.",
        "search.unknown_key",
    )


def _problem(kind: str, values: Sequence[Any]) -> str:
    wanted = KINDS[kind]
    if wanted is None:
        return "" if values else "needs at least one value"
    if len(values) != wanted or not all(map(_is_number, values)):
        return f"needs {wanted} finite numbers"
    low, high, *step = values
    if low > high:
        return "the lower bound is above the upper one"
    if "rand" in kind and not all(float(v).is_integer() for v in values):
        return "needs whole numbers"
    if "log" in kind and low <= 0:
        return "a logarithmic range starts above 0"
    if step and step[0] <= 0:
        return "the step must be above 0"
    if kind == "steps":
        return ""
    if step and _aligned(low, step[0], math.ceil) > _aligned(high, step[0], math.floor):
        return f"no multiple of {step[0]:g} lies in it"
    if low == high and not step:
        return "the upper bound must be above the lower one"
    return ""


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _made(key: str, kind: str, values: Sequence[Any]) -> Dimension:
    """`randint` and `lograndint` exclude their upper bound, as Ray Tune and Python's range do;
    what is quantized yields multiples of its step, `steps` counts from its lower bound.
    """
    if KINDS[kind] is None:
        once = {_coded(value): value for value in values}
        return Dimension(key=key, choices=tuple(once.values()))
    is_log = kind.removeprefix("q").startswith("log")
    low, high, *steps = values
    step = steps[0] if steps else 0
    if kind.startswith("q"):
        low, high = _aligned(low, step, math.ceil), _aligned(high, step, math.floor)
    if "rand" not in kind:
        is_whole = kind == "steps" and all(isinstance(v, int) for v in values)
    else:
        low, high, step, is_whole = int(low), int(high), int(step), True
        high, step = (high, step) if step else (high - 1, 1)
    made = Dimension(key=key, low=low, high=high, step=step, is_log=is_log, is_whole=is_whole)
    return replace(made, high=made.last()) if step else made


def _aligned(bound: float, step: float, to_whole: Any) -> float:
    quotient = bound / step
    near = round(quotient)
    whole = near if abs(quotient - near) < NEAR * max(1, abs(quotient)) else to_whole(quotient)
    return float(f"{whole * step:.12g}")


def _fitted(made: Dimension, name: str, annotation: Any) -> Dimension:
    """The dimension with points as its key holds them. Raises: SearchError search.value."""
    if made.choices:
        return replace(made, choices=tuple(_accepted(name, annotation, v) for v in made.choices))
    plain = bare(annotation)
    if plain is int and not made.is_whole:
        is_grid = made.step and float(made.low).is_integer() and float(made.step).is_integer()
        if not is_grid:
            raise refused(
                f"search.space.{name}: {made} are not all whole numbers, which {made.key} wants.",
                "Write randint, lograndint or qrandint.",
                "search.value",
            )
        made = replace(made, low=int(made.low), high=int(made.high), step=int(made.step))
        made = replace(made, is_whole=True)
    for bound in (made.low, made.high):
        if not _is_number(_accepted(name, annotation, bound)):
            raise refused(
                f"search.space.{name}: {made.key} is no number.",
                "Write choice with its values.",
                "search.value",
            )
    return made


def _held(keys: Collection[str], key: str, value: Any) -> Any:
    """As the key holds it; what the key refuses, or holds as an equal (0 as 0.0), as it is said."""
    if isinstance(keys, Mapping) and key in keys:
        with contextlib.suppress(ValueError):
            held = accepted(keys[key], value)
            return value if held == value else held
    return value


def _accepted(name: str, annotation: Any, value: Any) -> Any:
    try:
        return accepted(annotation, value)
    except ValueError as error:
        raise refused(
            f"search.space.{name}: the configuration refuses {value!r}: {error}.",
            "Leave it out, or narrow the bounds.",
            "search.value",
        ) from error


def assignments(
    dimensions: Sequence[Dimension], own: Mapping[str, Any]
) -> Iterator[dict[str, Any]] | None:
    """Every different trial there can be, None when they are too many to count; `own` are the
    project's values.
    """
    most = 1
    for dimension in dimensions:
        points = dimension.points()
        most *= len(points) if points is not None else MOST_POINTS + 1
        if most > MOST_POINTS:
            return None
    return _assignments(dimensions, {}, own)


def _assignments(
    left: Sequence[Dimension], chosen: dict[str, Any], own: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    if not left:
        yield chosen
        return
    dimension = left[0]
    in_force = {**own, **chosen}
    if not all(condition.holds(in_force) for condition in dimension.when):
        yield from _assignments(left[1:], chosen, own)
        return
    for point in dimension.points() or ():
        yield from _assignments(left[1:], {**chosen, dimension.key: point}, own)


def num_points(dimensions: Sequence[Dimension], own: Mapping[str, Any] | None = None) -> int | None:
    """How many different trials there can be; None when they are too many to count."""
    every = assignments(dimensions, own or {})
    return None if every is None else sum(1 for _ in every)
