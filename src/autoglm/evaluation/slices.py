"""Rows in groups that are scored apart: by length, by label, by a column, those that are new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoglm.contracts.task import TaskForm
from autoglm.errors import ConfigError

WAYS = ("length", "label", "column")
# Of more groups the largest are told, the rest together.
MOST_GROUPS = 20
# Numbers and lengths are cut where a third and two thirds of the rows lie.
PARTS = 3
REST, NOTHING = "(others)", "(none)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Rows `at` of those that are judged. `by` is `length`, `label`, `column X` or `new rows`."""

    by: str
    name: str
    at: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One entry of `evaluate.slices`."""

    by: str
    column: str = ""


def read_slices(said: Sequence[Mapping[str, Any]], form: TaskForm) -> tuple[Way, ...]:
    """The entries of `evaluate.slices`. Raises: ConfigError config.wrong_value for what cannot be
    read, or means nothing for such rows.
    """
    ways = tuple(_way(entry) for entry in said)
    for way in ways:
        if way.by == "length" and form.reads == "image":
            raise _wrong("by: length", "an image has no length", "Slice by label, or by a column.")
        if way.by == "label" and form.answers in {"number", "text"}:
            raise _wrong(
                "by: label", f"answers are a {form.answers}", "Slice by length, or by a column."
            )
    return ways


def _way(entry: Any) -> Way:
    example = "Write {by: length}, {by: label} or {by: column, column: NAME}."
    if not isinstance(entry, Mapping) or set(entry) - {"by", "column"}:
        raise _wrong(f"{entry!r:.80}", "it is no slice", example)
    by, column = entry.get("by"), str(entry.get("column") or "")
    if by not in WAYS or (by == "column") != bool(column):
        raise _wrong(f"{dict(entry)!r:.80}", "it is no slice", example)
    return Way(by=str(by), column=column)


def slices_of(
    way: Way, inputs: Sequence[Any], answers: Sequence[Any], cells: Sequence[Any] = ()
) -> list[Slice]:
    """The groups of one way; `cells` are the column's values, one per row. A row with several
    labels is in the group of each.
    """
    if way.by == "length":
        return _by_size("length", [len(one) for one in inputs], _unit(inputs))
    if way.by == "label":
        return _by_name("label", [_labels(answer) for answer in answers])
    numbers = [c for c in cells if isinstance(c, (int, float)) and not isinstance(c, bool)]
    is_of_numbers = len(numbers) + sum(c is None for c in cells) == len(cells)
    by = f"column {way.column}"
    if is_of_numbers and len(set(numbers)) > MOST_GROUPS:
        return _by_size(by, cells, "")
    return _by_name(by, [(NOTHING if cell is None else str(cell),) for cell in cells])


def _unit(inputs: Sequence[Any]) -> str:
    return " characters" if inputs and isinstance(inputs[0], str) else " tokens"


def _labels(answer: Any) -> Sequence[str]:
    if isinstance(answer, str):
        return (answer,)
    return sorted(set(answer)) or (NOTHING,)


def _by_name(by: str, names: Sequence[Sequence[str]]) -> list[Slice]:
    counts = Counter(name for row in names for name in row)
    told = {name for name, _ in counts.most_common(MOST_GROUPS)}
    groups: dict[str, list[int]] = {}
    for row, own in enumerate(names):
        for name in dict.fromkeys(name if name in told else REST for name in own):
            groups.setdefault(name, []).append(row)
    order = sorted(groups, key=lambda name: (name == REST, -len(groups[name]), name))
    return [Slice(by=by, name=name, at=tuple(groups[name])) for name in order]


def _by_size(by: str, sizes: Sequence[Any], unit: str) -> list[Slice]:
    known = sorted(size for size in sizes if size is not None)
    cuts = sorted({known[len(known) * part // PARTS] for part in range(1, PARTS)}) if known else []
    cuts = [cut for cut in cuts if cut > known[0]]
    groups: dict[str, list[int]] = {}
    names = _names(cuts, unit)
    for row, size in enumerate(sizes):
        name = NOTHING if size is None else names[sum(size >= cut for cut in cuts)]
        groups.setdefault(name, []).append(row)
    order = [name for name in (*names, NOTHING) if name in groups]
    return [Slice(by=by, name=name, at=tuple(groups[name])) for name in order]


def _names(cuts: Sequence[Any], unit: str) -> list[str]:
    """Of the groups between the cuts: from one up to, not including, the next."""
    if not cuts:
        return [f"all{unit}"]
    said = [f"{cut:g}" for cut in cuts]
    between = [f"{low} up to {high}{unit}" for low, high in zip(said, said[1:], strict=False)]
    return [f"under {said[0]}{unit}", *between, f"{said[-1]}{unit} and more"]


def _wrong(what: str, why: str, next_step: str) -> ConfigError:
    return ConfigError(
        f"evaluate.slices: {what}: {why}.", code="config.wrong_value", next_step=next_step
    )
