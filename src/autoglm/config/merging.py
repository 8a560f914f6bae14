"""What several layers say of one key, or of keys below each other → what is in force.

Maps merge deeply, lists are replaced. An entry that `whole_below` makes one thing is replaced
whole. Options of a name give way when a stronger layer says another name. `null` takes an entry
out, an explicit `{}` takes all out. A default map is the weakest layer for what names single
entries; a map that is written out as a map stands in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autoglm.config.paths import canonical, format_path, parse_path
from autoglm.config.schema import Key, bare, extra_of, fields_of, is_free, leaf_keys


@dataclass(frozen=True, slots=True)
class Said:
    """What one layer said of a key; `rank` is the layer's place, weakest first."""

    layer: str
    where: str
    value: Any
    rank: int = 0
    is_entry: bool = False


Lines = Mapping[str, tuple[Said, ...]]


def with_defaults(schema: Any, said: Lines) -> dict[str, tuple[Said, ...]]:
    """`said`, with the entries of a default map below what only names single entries of it."""
    annotations = leaf_keys(schema)
    found = dict(said)
    for key, lines in _below(annotations, said).items():
        is_written = any(
            not line.is_entry and line.value is not None for inner in lines for line in said[inner]
        )
        if is_written or key in said:
            continue
        for path, value in spread(default_of(schema, key) or {}, tuple(key.split("."))):
            name = format_path(path)
            found[name] = (Said("defaults", "", value), *found.get(name, ()))
    return found


def in_force(schema: Any, said: Lines) -> Iterator[tuple[str, Any]]:
    """Keys in force with their raw value: not those of an entry that a stronger layer replaced
    whole, or took out, nor those above or below of which a stronger layer made something else.
    """
    annotations = leaf_keys(schema)
    strongest: dict[tuple[str, ...], int] = {}
    entries: dict[str, tuple[str, ...]] = {}
    for key, lines in said.items():
        if key in annotations:
            continue
        parts, top = _top(annotations, key)
        extra = extra_of(annotations[".".join(parts[:top])], Key)
        if extra is not None and extra.whole_below is not None:
            entries[key] = parts[: top + extra.whole_below]
            strongest[entries[key]] = max(strongest.get(entries[key], 0), lines[-1].rank)
    hidden = _hidden(annotations, said) | _of_other_names(annotations, said)
    left = set()
    for key, lines in said.items():
        is_out = key not in annotations and lines[-1].value is None
        if is_out or key in hidden:
            continue
        if key not in entries or lines[-1].rank == strongest[entries[key]]:
            left.add(key)
            yield key, lines[-1].value
    for key, below in _below(annotations, said).items():
        if not left.intersection([key, *below]):
            yield key, {}  # everything was taken out: the default does not come back


def _below(annotations: Mapping[str, Any], said: Lines) -> dict[str, list[str]]:
    """Free map → the keys below it of which anything was said."""
    found: dict[str, list[str]] = {}
    for key in said:
        if key not in annotations:
            parts, top = _top(annotations, key)
            found.setdefault(".".join(parts[:top]), []).append(key)
    return found


def _top(annotations: Mapping[str, Any], key: str) -> tuple[tuple[str, ...], int]:
    """The parts of a key below a free map, and how many of them name the map."""
    parts = parse_path(key)
    return parts, next(n for n in range(len(parts)) if ".".join(parts[:n]) in annotations)


def _hidden(annotations: Mapping[str, Any], said: Lines) -> set[str]:
    """Of two keys of which one lies below the other, the weaker."""
    free = {parse_path(k): k for k in said if k not in annotations or is_free(annotations[k])}
    hidden = set()
    for parts, key in free.items():
        for depth in range(1, len(parts)):
            above = free.get(parts[:depth])
            if above is None:
                continue
            is_weaker = said[above][-1].rank < said[key][-1].rank
            hidden.add(above if is_weaker else key)
    return hidden


def _of_other_names(annotations: Mapping[str, Any], said: Lines) -> set[str]:
    """Options that were said of a name which a stronger layer replaced."""
    gone = set()
    for free, keys in _below(annotations, said).items():
        extra = extra_of(annotations[free], Key)
        names = said.get(f"{free}.name", ())
        if extra is None or not extra.is_named or not names:
            continue
        others = [line.rank for line in names if line.value != names[-1].value]
        if others:
            since = min(line.rank for line in names if line.rank > others[-1])
            gone |= {key for key in keys if said[key][-1].rank < since}
    return gone


def default_of(schema: Any, key: str) -> Any:
    """The schema's default of a key, None when it has none (or that one)."""
    section = schema
    *parents, last = key.split(".")
    for name in parents:
        section = bare(fields_of(section)[canonical(name)][1])
    field = section.__dataclass_fields__[last]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def spread(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Leaves of a map of maps."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from spread(inner, (*path, name))
    else:
        yield path, value
