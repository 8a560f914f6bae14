"""The value in force, and why: defaults < files < environment < command line.

The schema is a tree of frozen keyword-only dataclasses (`settings.py` hands it in). Every layer
is a flat list of leaves with their place; names are relaxed (`max-length`, `maxLength`,
`MAX_LENGTH` are one key), maps merge deeply, lists are replaced.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from autoglm.config import units
from autoglm.config.placeholders import resolve
from autoglm.config.schema import Unit
from autoglm.config.yaml_reader import Leaf, parse_scalar, read_yaml
from autoglm.errors import ConfigError

S = TypeVar("S")
PREFIX = "AUTOGLM_"
# Ours, but not keys of a project: they steer the process itself.
PROCESS_VARIABLES = frozenset({"AUTOGLM_FAILPOINT", "AUTOGLM_DEMO_ROWS"})


@dataclass(frozen=True, slots=True)
class Said:
    """What one layer said of a key."""

    layer: str
    where: str
    value: Any


@dataclass(frozen=True, slots=True)
class Config(Generic[S]):
    """The bound settings with their provenance: `said[key]` lists layers from weakest up."""

    settings: S
    said: Mapping[str, tuple[Said, ...]]
    layers: tuple[str, ...]

    def origin(self, key: str) -> Said:
        return self.said.get(key, (Said("defaults", "", None),))[-1]


@dataclass(frozen=True, slots=True)
class Layer:
    name: str
    leaves: Sequence[Leaf]
    place: str = ""


def load(
    schema: type[S],
    *,
    files: Iterable[Path] = (),
    environ: Mapping[str, str] = MappingProxyType({}),
    assignments: Sequence[str] = (),
    base: Path = Path(),
) -> Config[S]:
    """Read all layers, bind them to `schema` and say where each value came from.

    Raises: ConfigError naming layer, place and next step.
    """
    known = _known_keys(schema)
    layers = [file_layer(path) for path in files]
    layers += [_environment(environ, known), _assignments(assignments)]
    said: dict[str, tuple[Said, ...]] = {}
    for layer in layers:
        for leaf in layer.leaves:
            key = _canonical_key(schema, leaf, layer)
            where = f"{layer.place}:{leaf.line}" if leaf.line else layer.place or leaf.path[-1]
            said[key] = (*said.get(key, ()), Said(layer.name, where, leaf.value))
    values = _in_force(said, base)
    tree = _nest(schema, values, said)
    _require(schema, tree, said, layers)
    return Config(_bind(schema, tree, said), said, ("defaults", *(layer.name for layer in layers)))


def file_layer(path: Path) -> Layer:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist.", code="config.missing_file", next_step="Run `autoglm init`."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", code="config.unreadable") from error
    return Layer(path.name, read_yaml(text, name=path.name), path.name)


def _environment(environ: Mapping[str, str], known: Mapping[str, str]) -> Layer:
    leaves = []
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in PROCESS_VARIABLES:
            continue
        squeezed = _canonical(name.removeprefix(PREFIX))
        key = known.get(squeezed)
        if key is None:
            near = difflib.get_close_matches(squeezed, known, n=1)
            hint = f"Did you mean {_variable(known[near[0]])}?" if near else ""
            raise ConfigError(
                f"environment variable {name} fits no key.",
                code="config.unknown_key",
                next_step=hint,
            )
        leaves.append(Leaf((*key.split("."),), parse_scalar(text), 0))
    return Layer("environment", leaves)


def _assignments(assignments: Sequence[str]) -> Layer:
    leaves: list[Leaf] = []
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: write KEY=VALUE.", code="config.broken")
        path = tuple(key.strip().split("."))
        parsed = read_yaml(f"v: {value}", name="--set") if value.startswith("{") else None
        if parsed:
            leaves += [Leaf((*path, *leaf.path[1:]), leaf.value, 0) for leaf in parsed]
        else:
            leaves.append(Leaf(path, parse_scalar(value), 0))
    return Layer("command line", leaves, "--set")


def _variable(key: str) -> str:
    return PREFIX + re.sub(r"[^A-Za-z0-9]+", "_", key).upper()


@cache
def _canonical(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def _fields(schema: Any) -> dict[str, tuple[str, Any]]:
    """Canonical name → (field name, type) of a section. Raises: TypeError on a name clash."""
    hints = get_type_hints(schema, include_extras=True)
    fields: dict[str, tuple[str, Any]] = {}
    for field in dataclasses.fields(schema):
        if _canonical(field.name) in fields:
            raise TypeError(f"{schema.__name__} has two fields that are both {field.name!r}")
        fields[_canonical(field.name)] = (field.name, hints[field.name])
    return fields


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _is_section(annotation: Any) -> bool:
    return dataclasses.is_dataclass(_bare(annotation))


def _is_free(annotation: Any) -> bool:
    bare = _bare(annotation)
    return (get_origin(bare) or bare) is get_origin(Mapping[str, Any])


def leaf_keys(schema: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key → annotation, for every leaf of the schema."""
    keys: dict[str, Any] = {}
    for name, annotation in _fields(schema).values():
        if _is_section(annotation):
            keys |= leaf_keys(_bare(annotation), f"{prefix}{name}.")
        else:
            keys[prefix + name] = annotation
    return keys


def _known_keys(schema: Any) -> dict[str, str]:
    return {_canonical(key): key for key in leaf_keys(schema)}


def _canonical_key(schema: Any, leaf: Leaf, layer: Layer) -> str:
    """The schema's dotted spelling of a leaf's path. Below a free map the user's words stay."""
    section = schema
    names: list[str] = []
    for depth, raw in enumerate(leaf.path):
        found = _fields(section).get(_canonical(raw))
        if found is None:
            raise _unknown(section, leaf, depth, names, layer)
        name, annotation = found
        names.append(name)
        if _is_free(annotation):
            return ".".join([*names, *leaf.path[depth + 1 :]])
        if not _is_section(annotation):
            if depth + 1 < len(leaf.path):
                raise _unknown(None, leaf, depth + 1, names, layer)
            return ".".join(names)
        section = _bare(annotation)
    if leaf.value in (None, {}):  # `section:` with nothing below it says nothing
        return ".".join(names) + "."
    raise ConfigError(
        f"{_place(layer, leaf)}: {'.'.join(names)} is a section, not a value.",
        code="config.wrong_type",
    )


def _unknown(section: Any, leaf: Leaf, depth: int, names: list[str], layer: Layer) -> ConfigError:
    options = [name for name, _ in _fields(section).values()] if section else []
    near = difflib.get_close_matches(leaf.path[depth], options, n=1)
    prefix = "".join(f"{name}." for name in names)
    hint = f"Did you mean {prefix}{near[0]}?" if near else ""
    if not hint and options:
        hint = f"Known here: {', '.join(options)}."
    return ConfigError(
        f"{_place(layer, leaf)}: unknown key {'.'.join(leaf.path)}.",
        code="config.unknown_key",
        next_step=hint,
    )


def _place(layer: Layer, leaf: Leaf) -> str:
    return f"{layer.place or layer.name}:{leaf.line}" if leaf.line else (layer.place or layer.name)


def _in_force(said: Mapping[str, tuple[Said, ...]], base: Path) -> dict[str, Any]:
    raw = {key: lines[-1].value for key, lines in said.items() if not key.endswith(".")}
    by_canonical = {_canonical(key): key for key in raw}

    def lookup(name: str) -> tuple[bool, Any]:
        key = by_canonical.get(_canonical(name))
        return (key is not None, raw[key] if key is not None else None)

    return {key: resolve(value, lookup, base=base, chain=(key,)) for key, value in raw.items()}


def _nest(
    schema: Any, values: Mapping[str, Any], said: Mapping[str, tuple[Said, ...]]
) -> dict[str, Any]:
    annotations = leaf_keys(schema)
    tree: dict[str, Any] = {}
    for key, value in values.items():
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        try:
            node[last] = _with_unit(annotations.get(key), value)
        except ValueError as error:
            origin = said[key][-1]
            raise ConfigError(
                f"{origin.where or origin.layer}: {key} = {value!r}: {error}.",
                code="config.wrong_type",
            ) from error
    return tree


def _with_unit(annotation: Any, value: Any) -> Any:
    if annotation is None:
        return value
    if _bare(annotation) is timedelta:
        return units.duration(value)
    # `Annotated[Share, Key(…)]` is flattened by typing, so the unit is among the metadata.
    for extra in get_args(annotation)[1:]:
        if isinstance(extra, Unit):
            return units.num_bytes(value) if extra.name == "bytes" else units.share(value)
    is_list = get_origin(_bare(annotation)) is tuple
    if is_list and isinstance(value, str):
        return [parse_scalar(part.strip()) for part in value.split(",") if part.strip()]
    return value


def _require(
    schema: Any,
    tree: Mapping[str, Any],
    said: Mapping[str, tuple[Said, ...]],
    layers: Sequence[Layer],
    prefix: str = "",
) -> None:
    for field in dataclasses.fields(schema):
        annotation = _fields(schema)[_canonical(field.name)][1]
        has_default = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        key = prefix + field.name
        if _is_section(annotation) and (field.name in tree or not has_default):
            _require(_bare(annotation), tree.get(field.name, {}), said, layers, key + ".")
        elif field.name not in tree and not has_default:
            asked = ["defaults (no value)"]
            for layer in layers:
                detail = f"no {_variable(key)}" if layer.name == "environment" else f"no key {key}"
                asked.append(f"{layer.name} ({detail})")
            raise ConfigError(
                f"{key} is missing. Asked, in order: {', '.join(asked)}.",
                code="config.missing",
                next_step=f"Set it in autoglm.yaml or by --set {key}=….",
            )


def _bind(schema: type[S], tree: Mapping[str, Any], said: Mapping[str, tuple[Said, ...]]) -> S:
    from pydantic import ValidationError

    from autoglm.contracts.record import from_json

    try:
        return from_json(schema, tree)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            lines = next((said[k] for k in (key, key.rsplit(".", 1)[0]) if k in said), None)
            where = f"{lines[-1].where or lines[-1].layer}: " if lines else ""
            problems.append(f"{where}{key} = {item['input']!r}: {item['msg']}")
        raise ConfigError("; ".join(problems) + ".", code="config.wrong_value") from error
