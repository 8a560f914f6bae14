"""A layer's own names → the schema's keys: relaxed spelling, lists by index, maps in braces."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autoglm.config.layers import Layer
from autoglm.config.paths import canonical, format_path, nearest, parse_path, squeezed, variable
from autoglm.config.schema import (
    bare,
    fields_of,
    is_free,
    is_list,
    is_secret,
    is_section,
    leaf_keys,
)
from autoglm.config.yaml_reader import Leaf, Text, read_yaml
from autoglm.errors import ConfigError

# What takes an entry of a map out, from a place that knows only text.
_NULLS = {"null", "~"}
_INDEX = re.compile(r"[0-9]{1,6}")


def keyed(
    schema: Any, layer: Layer, *, ignore_unknown: bool, left_out: Mapping[str, str]
) -> Iterator[tuple[str, Leaf]]:
    """The layer's leaves under the schema's own spelling; indexed items become whole lists.

    `left_out`: sections that exist and cannot be used, with the reason. Raises: ConfigError.
    """
    items: dict[str, dict[int, Leaf]] = {}
    pending = [*reversed(layer.leaves), *_from_variables(schema, layer, ignore_unknown, left_out)]
    while pending:
        leaf = pending.pop()
        found = _walk(schema, leaf.path)
        if isinstance(found, int):
            if not ignore_unknown:
                raise _unknown(schema, leaf, found, layer, left_out)
            continue
        names, annotation, rest = found
        if _is_map_in_braces(leaf.value, annotation):
            pending += _opened(leaf, layer, is_entry=bool(rest))
        elif annotation is None:
            _refuse_value_for_section(names, leaf, layer)
        elif is_list(annotation) and len(rest) == 1 and _INDEX.fullmatch(rest[0]):
            key = ".".join(names)
            if int(rest[0]) in items.setdefault(key, {}):
                raise said_twice(f"{key}[{rest[0]}]", place_of(layer, leaf), "")
            items[key][int(rest[0])] = leaf
        elif rest and not is_free(annotation):
            if is_secret(annotation):  # its own words may be the secret
                raise _no_section(".".join(names), place_of(layer, leaf))
            raise _unknown(schema, leaf, len(names), layer, left_out)
        elif not (is_free(annotation) and not rest and leaf.value is None):
            is_null = bool(rest) and isinstance(leaf.value, Text) and leaf.value.strip() in _NULLS
            value = None if is_null else leaf.value
            yield format_path((*names, *rest)), dataclasses.replace(leaf, value=value)
    yield from _whole_lists(items, layer)


def said_twice(key: str, first: str, second: str) -> ConfigError:
    """Two spellings of one key in one layer: which of them was meant?"""
    places = f"{first} and {second}" if second and first != second else first
    return ConfigError(
        f"{places}: {key} is said twice in one layer.",
        code="config.duplicate_key",
        next_step="Keep one of them; spellings like batch-size and batchSize are one key.",
    )


def place_of(layer: Layer, leaf: Leaf) -> str:
    if leaf.line:
        return f"{layer.place or layer.name}:{leaf.line}"
    return leaf.place or layer.place or layer.name


def _is_map_in_braces(value: Any, annotation: Any) -> bool:
    """Only where a map may stand: a password may begin with a brace."""
    can_hold = annotation is None or is_free(annotation)
    return can_hold and isinstance(value, Text) and value.lstrip().startswith("{")


def _opened(leaf: Leaf, layer: Layer, *, is_entry: bool) -> list[Leaf]:
    inner = read_yaml(f"v: {leaf.value}", name=leaf.place or layer.place or layer.name)
    return [
        dataclasses.replace(leaf, path=(*leaf.path, *n.path[1:]), value=n.value, is_entry=is_entry)
        for n in inner
    ]


def _refuse_value_for_section(names: Sequence[str], leaf: Leaf, layer: Layer) -> None:
    if leaf.value not in (None, {}):  # `section:` with nothing below it says nothing
        raise ConfigError(
            f"{place_of(layer, leaf)}: {'.'.join(names)} is a section, not a value.",
            code="config.wrong_type",
            next_step=f"Write its keys below it: {'.'.join(names)}: {{key: value}}.",
        )


def _no_section(key: str, place: str) -> ConfigError:
    return ConfigError(
        f"{place}: {key} is one text, no map.",
        code="config.wrong_type",
        next_step="Put the text in quotes.",
    )


def _whole_lists(
    items: Mapping[str, Mapping[int, Leaf]], layer: Layer
) -> Iterator[tuple[str, Leaf]]:
    for key, found in items.items():
        if sorted(found) != list(range(len(found))):
            missing = next(i for i in range(len(found) + 1) if i not in found)
            raise ConfigError(
                f"{layer.place or layer.name}: {key}[{missing}] is missing.",
                code="config.wrong_type",
                next_step="Number the items from 0, without a gap.",
            )
        whole = [found[i].value for i in range(len(found))]
        yield key, dataclasses.replace(found[0], value=whole)


def _walk(schema: Any, path: Sequence[str]) -> tuple[list[str], Any, tuple[str, ...]] | int:
    """(names, annotation, rest): as far as the schema reaches, None for a section; or the depth
    of the first part that nobody knows.
    """
    section, names = schema, []
    for depth, raw in enumerate(path):
        known = fields_of(section).get(canonical(raw))
        if known is None:
            return depth
        name, annotation = known
        names.append(name)
        if not is_section(annotation):
            return names, annotation, tuple(path[depth + 1 :])
        section = bare(annotation)
    return names, None, ()


def _from_variables(
    schema: Any, layer: Layer, ignore_unknown: bool, left_out: Mapping[str, str]
) -> list[Leaf]:
    leaves = []
    for name, text in layer.variables.items():
        prefix = max((p for p in layer.prefixes if name.startswith(p)), key=len)
        top = layer.prefixes[prefix]
        path = _key_of_variable(schema, name, canonical(top) + squeezed(name[len(prefix) :]))
        if path is not None:
            leaves.append(Leaf(path, Text(text), 0, name, is_entry=True))
        elif not ignore_unknown:
            raise _no_variable(schema, name, prefix, top, left_out)
    return leaves


def _no_variable(
    schema: Any, name: str, prefix: str, top: str, left_out: Mapping[str, str]
) -> ConfigError:
    said = squeezed(name[len(prefix) :])
    reason = next((why for key, why in left_out.items() if said.startswith(canonical(key))), "")
    below = [k for k in leaf_keys(schema) if k.startswith(f"{top}." if top else "")]
    known = {squeezed(k.removeprefix(f"{top}.")): k.removeprefix(f"{top}.") for k in below}
    near = nearest(said, known)
    hint = f"Did you mean {variable(prefix, known[near])}?" if near else "Unset it."
    return ConfigError(
        f"environment variable {name} fits no key." + (f" {reason}" if reason else ""),
        code="config.unknown_key",
        next_step="See `autoglm plugins`." if reason else hint,
    )


def _key_of_variable(schema: Any, name: str, said: str) -> tuple[str, ...] | None:
    fits = [key for key in leaf_keys(schema) if squeezed(key) == said]
    if len(fits) > 1:
        raise ConfigError(
            f"environment variable {name} fits {' and '.join(fits)}.",
            code="config.ambiguous",
            next_step="Set that key in a file or by --set.",
        )
    if fits:
        return tuple(fits[0].split("."))
    item = re.fullmatch(r"(.+?)_([0-9]+)_?", name)
    if item is None:
        return None
    stem = said[: -len(item[2])]
    lists = [k for k, a in leaf_keys(schema).items() if is_list(a) and squeezed(k) == stem]
    return (*lists[0].split("."), item[2]) if len(lists) == 1 else None


def _unknown(
    schema: Any, leaf: Leaf, depth: int, layer: Layer, left_out: Mapping[str, str]
) -> ConfigError:
    section, names = schema, []
    for raw in leaf.path[:depth]:
        name, annotation = fields_of(section)[canonical(raw)]
        names.append(name)
        section = bare(annotation) if is_section(annotation) else None
    message = f"{place_of(layer, leaf)}: unknown key {format_path(leaf.path)}."
    reason = left_out.get(canonical(leaf.path[0])) if depth == 0 else None
    if reason:
        message, hint = f"{message} {reason}", "See `autoglm plugins`."
    else:
        hint = _hint(schema, section, names, leaf.path[depth])
    return ConfigError(message, code="config.unknown_key", next_step=hint)


def _hint(schema: Any, section: Any, names: Sequence[str], raw: str) -> str:
    if section is None:
        return f"{'.'.join(names)} is a value; nothing stands below it."
    if "." in raw and _is_key(schema, ".".join([*names, raw])):
        return f"In YAML each level has its own line: {raw.replace('.', ': {')}: …{'}'}."
    options = [name for name, _ in fields_of(section).values()]
    near = nearest(raw, options)
    if near:
        return f"Did you mean {'.'.join([*names, near])}?"
    return f"Known here: {', '.join(options)}."


def _is_key(schema: Any, key: str) -> bool:
    try:
        return not isinstance(_walk(schema, parse_path(key)), int)
    except ValueError:
        return False
