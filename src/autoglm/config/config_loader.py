"""The value in force, and why: the last layer that says something of a key decides.

defaults < files < profile file < environment < remote centre < command line

every layer's names → the schema's keys        (relaxed: `max-length`, `maxLength` are one key)
per key, what each layer said                  (maps merge deeply, lists are replaced)
placeholders → values, units → numbers
one tree → the schema's frozen dataclasses     (validated by pydantic)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

from autoglm.config import units
from autoglm.config.layers import Layer
from autoglm.config.paths import canonical, format_path, nearest, parse_path, variable
from autoglm.config.placeholders import resolve
from autoglm.config.schema import (
    Key,
    Unit,
    bare,
    extra_of,
    fields_of,
    is_free,
    is_list,
    is_secret,
    is_section,
    leaf_keys,
)
from autoglm.config.yaml_reader import Leaf, Text, parse_scalar, read_yaml
from autoglm.errors import ConfigError

S = TypeVar("S")
MASK = "***"


@dataclass(frozen=True, slots=True)
class Said:
    """What one layer said of a key; `rank` is the layer's place, weakest first."""

    layer: str
    where: str
    value: Any
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Config(Generic[S]):
    """The bound settings with their provenance: `said[key]` lists layers from weakest up.

    `secrets` are the keys whose value nobody may print.
    """

    settings: S
    said: Mapping[str, tuple[Said, ...]]
    layers: tuple[str, ...]
    secrets: frozenset[str] = frozenset()

    def origin(self, key: str) -> Said:
        return self.said.get(key, (Said("defaults", "", None),))[-1]


def bind(
    schema: type[S], layers: Sequence[Layer], *, base: Path = Path(), ignore_unknown: bool = False
) -> Config[S]:
    """Bind `layers` (weakest first) to `schema` and say where each value came from.

    `ignore_unknown` is for a first look at a few keys, before plugins have declared theirs.
    Raises: ConfigError naming layer, place and next step.
    """
    said: dict[str, tuple[Said, ...]] = {}
    for rank, layer in enumerate(layers, start=1):
        for key, leaf in _keyed(schema, layer, ignore_unknown):
            line = Said(layer.name, _place(layer, leaf), leaf.value, rank)
            said[key] = (*said.get(key, ()), line)
    values, secrets = _in_force(schema, said, base)
    tree = _nest(schema, values, said)
    _require(schema, tree, layers)
    settings = _validated(schema, tree, said, secrets)
    names = ("defaults", *(layer.name for layer in layers))
    return Config(settings, said, names, frozenset(secrets))


def _keyed(schema: Any, layer: Layer, ignore_unknown: bool) -> Iterator[tuple[str, Leaf]]:
    """The layer's leaves under the schema's own spelling; indexed items become whole lists."""
    items: dict[str, dict[int, Leaf]] = {}
    pending = [*reversed(layer.leaves), *_from_variables(schema, layer, ignore_unknown)]
    while pending:
        leaf = pending.pop()
        found = _walk(schema, leaf.path)
        if isinstance(found, int):
            if not ignore_unknown:
                raise _unknown(schema, leaf, found, layer)
            continue
        names, annotation, rest = found
        if isinstance(leaf.value, Text) and leaf.value.lstrip().startswith("{"):
            nested = read_yaml(f"v: {leaf.value}", name=layer.place or layer.name)
            pending += [
                dataclasses.replace(leaf, path=(*leaf.path, *n.path[1:]), value=n.value)
                for n in nested
            ]
        elif annotation is None:
            if leaf.value not in (None, {}):  # `section:` with nothing below it says nothing
                message = f"{_place(layer, leaf)}: {'.'.join(names)} is a section, not a value."
                raise ConfigError(message, code="config.wrong_type")
        elif is_list(annotation) and len(rest) == 1 and rest[0].isdigit():
            items.setdefault(".".join(names), {})[int(rest[0])] = leaf
        elif rest and not is_free(annotation):
            raise _unknown(schema, leaf, len(names), layer)
        elif not (is_free(annotation) and not rest and leaf.value is None):
            yield format_path((*names, *rest)), leaf
    for key, found_items in items.items():
        if sorted(found_items) != list(range(len(found_items))):
            missing = next(i for i in range(len(found_items) + 1) if i not in found_items)
            message = f"{layer.place or layer.name}: {key}[{missing}] is missing."
            raise ConfigError(message, code="config.wrong_type")
        whole = [found_items[i].value for i in range(len(found_items))]
        yield key, dataclasses.replace(found_items[0], value=whole)


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


def _from_variables(schema: Any, layer: Layer, ignore_unknown: bool) -> list[Leaf]:
    leaves = []
    for name, text in layer.variables.items():
        prefix = max((p for p in layer.prefixes if name.startswith(p)), key=len)
        top = layer.prefixes[prefix]
        path = _key_of_variable(schema, name, canonical(top) + canonical(name[len(prefix) :]))
        if path is not None:
            leaves.append(Leaf(path, Text(text), 0, name))
        elif not ignore_unknown:
            below = [k for k in leaf_keys(schema) if k.startswith(f"{top}." if top else "")]
            known = {canonical(k.removeprefix(f"{top}.")): k.removeprefix(f"{top}.") for k in below}
            near = nearest(canonical(name[len(prefix) :]), known)
            hint = f"Did you mean {variable(prefix, known[near])}?" if near else ""
            message = f"environment variable {name} fits no key."
            raise ConfigError(message, code="config.unknown_key", next_step=hint)
    return leaves


def _key_of_variable(schema: Any, name: str, squeezed: str) -> tuple[str, ...] | None:
    fits = [key for key in leaf_keys(schema) if canonical(key) == squeezed]
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
    stem = squeezed[: -len(item[2])]
    lists = [k for k, a in leaf_keys(schema).items() if is_list(a) and canonical(k) == stem]
    return (*lists[0].split("."), item[2]) if len(lists) == 1 else None


def _unknown(schema: Any, leaf: Leaf, depth: int, layer: Layer) -> ConfigError:
    section, names = schema, []
    for raw in leaf.path[:depth]:
        name, annotation = fields_of(section)[canonical(raw)]
        names.append(name)
        section = bare(annotation) if is_section(annotation) else None
    options = [name for name, _ in fields_of(section).values()] if section else []
    near = nearest(leaf.path[depth], options)
    hint = f"Did you mean {'.'.join([*names, near])}?" if near else ""
    if not hint and options:
        hint = f"Known here: {', '.join(options)}."
    return ConfigError(
        f"{_place(layer, leaf)}: unknown key {format_path(leaf.path)}.",
        code="config.unknown_key",
        next_step=hint,
    )


def _place(layer: Layer, leaf: Leaf) -> str:
    if leaf.line:
        return f"{layer.place or layer.name}:{leaf.line}"
    return leaf.place or layer.place or layer.name


def _in_force(
    schema: Any, said: Mapping[str, tuple[Said, ...]], base: Path
) -> tuple[dict[str, Any], set[str]]:
    """Values after placeholders, and the keys that must not be shown."""
    annotations = leaf_keys(schema)
    raw = {key: lines[-1].value for key, lines in _not_replaced(annotations, said)}
    by_canonical = {canonical(key): key for key in raw}
    secrets = {key for key, annotation in annotations.items() if is_secret(annotation)}

    def lookup(name: str) -> tuple[bool, Any]:
        key = by_canonical.get(canonical(name))
        return (True, raw[key]) if key is not None else _default(schema, name)

    values = {}
    for key, value in raw.items():
        is_file: list[str] = []
        values[key] = resolve(value, lookup, base=base, chain=(key,), on_file=is_file.append)
        if is_file:
            secrets.add(key)
    return values, secrets


def _not_replaced(
    annotations: Mapping[str, Any], said: Mapping[str, tuple[Said, ...]]
) -> Iterator[tuple[str, tuple[Said, ...]]]:
    """Keys in force: not those of an entry that a stronger layer replaced whole, or took out, nor
    those above or below of which a stronger layer made something else.
    """
    strongest: dict[tuple[str, ...], int] = {}
    entries: dict[str, tuple[str, ...]] = {}
    for key, lines in said.items():
        if key in annotations:
            continue
        parts = parse_path(key)
        top = next(n for n in range(len(parts)) if ".".join(parts[:n]) in annotations)
        extra = extra_of(annotations[".".join(parts[:top])], Key)
        if extra is not None and extra.whole_below is not None:
            entries[key] = parts[: top + extra.whole_below]
            strongest[entries[key]] = max(strongest.get(entries[key], 0), lines[-1].rank)
    hidden = _hidden(annotations, said)
    for key, lines in said.items():
        is_out = key not in annotations and lines[-1].value is None
        if is_out or key in hidden:
            continue
        if key not in entries or lines[-1].rank == strongest[entries[key]]:
            yield key, lines


def _hidden(annotations: Mapping[str, Any], said: Mapping[str, tuple[Said, ...]]) -> set[str]:
    """Of two keys of which one lies below the other, the weaker; an empty map never hides."""
    free = {parse_path(k): k for k in said if k not in annotations or is_free(annotations[k])}
    hidden = set()
    for parts, key in free.items():
        for depth in range(1, len(parts)):
            above = free.get(parts[:depth])
            if above is None:
                continue
            is_empty = said[above][-1].value == {}
            if is_empty or said[above][-1].rank < said[key][-1].rank:
                hidden.add(above)
            else:
                hidden.add(key)
    return hidden


def _default(schema: Any, name: str) -> tuple[bool, Any]:
    """A default of the schema, for placeholders that ask for a key nobody set."""
    section = schema
    try:
        parts = parse_path(name)
    except ValueError:
        return False, None
    for depth, raw in enumerate(parts):
        known = fields_of(section).get(canonical(raw))
        if known is None:
            return False, None
        field = section.__dataclass_fields__[known[0]]
        if is_section(known[1]):
            section = bare(known[1])
        elif depth == len(parts) - 1 and field.default is not dataclasses.MISSING:
            return True, field.default
    return False, None


def _nest(
    schema: Any, values: Mapping[str, Any], said: Mapping[str, tuple[Said, ...]]
) -> dict[str, Any]:
    annotations = leaf_keys(schema)
    tree: dict[str, Any] = {}
    for key, value in values.items():
        node = tree
        *parents, last = parse_path(key)
        for parent in parents:
            node = node.setdefault(parent, {})
        try:
            node[last] = _typed(annotations.get(key), value)
        except ValueError as error:
            origin = said[key][-1]
            raise ConfigError(
                f"{origin.where or origin.layer}: {key} = {value!r}: {error}.",
                code="config.wrong_type",
            ) from error
    return tree


def _typed(annotation: Any, value: Any) -> Any:
    """Units and lists become what the field holds; other texts are left to pydantic."""
    if annotation is None:  # an entry of a free map
        return parse_scalar(value) if isinstance(value, Text) else value
    if bare(annotation) is timedelta:
        return units.duration(value)
    unit = extra_of(annotation, Unit)
    if unit is not None:
        return units.num_bytes(value) if unit.name == "bytes" else units.share(value)
    if is_list(annotation) and isinstance(value, str):
        if value.lstrip().startswith("["):
            return parse_scalar(value)
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Text) and is_free(annotation):
        return parse_scalar(value)
    return str(value) if isinstance(value, Text) else value


def _require(
    schema: Any, tree: Mapping[str, Any], layers: Sequence[Layer], prefix: str = ""
) -> None:
    for field in dataclasses.fields(schema):
        annotation = fields_of(schema)[canonical(field.name)][1]
        has_default = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        key = prefix + field.name
        if is_section(annotation) and (field.name in tree or not has_default):
            _require(bare(annotation), tree.get(field.name, {}), layers, key + ".")
        elif field.name not in tree and not has_default:
            asked = ["defaults (no value)"]
            for layer in layers:
                name = variable(next(iter(layer.prefixes), ""), key)
                detail = f"no {name}" if layer.name == "environment" else f"no key {key}"
                asked.append(f"{layer.name} ({detail})")
            raise ConfigError(
                f"{key} is missing. Asked, in order: {', '.join(asked)}.",
                code="config.missing",
                next_step=f"Set it in autoglm.yaml or by --set {key}=….",
            )


def _validated(
    schema: type[S],
    tree: Mapping[str, Any],
    said: Mapping[str, tuple[Said, ...]],
    secrets: set[str],
) -> S:
    from pydantic import ValidationError

    from autoglm.contracts.record import from_json

    try:
        return from_json(schema, tree)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            keys = (key, key.rsplit(".", 1)[0])
            lines = next((said[k] for k in keys if k in said), None)
            where = f"{lines[-1].where or lines[-1].layer}: " if lines else ""
            shown = MASK if secrets.intersection(keys) else repr(item["input"])
            problems.append(f"{where}{key} = {shown}: {item['msg']}")
        # The chain would show pydantic's own message, with the values in it.
        raise ConfigError("; ".join(problems) + ".", code="config.wrong_value") from None
