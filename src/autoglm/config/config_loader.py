"""The value in force, and why: the last layer that says something of a key decides.

defaults < files < profile file < environment < remote centre < command line

every layer's names → the schema's keys        (keys.py: `max-length`, `maxLength` are one key)
per key, what each layer said → what counts    (merging.py: maps merge deeply, lists are replaced)
placeholders → values, units → numbers         (placeholders.py, values.py)
one tree → the schema's frozen dataclasses     (validated by pydantic)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

from autoglm.config.keys import keyed, place_of, said_twice
from autoglm.config.layers import Layer
from autoglm.config.masking import MASK, hidden, texts_of
from autoglm.config.merging import Lines, Said, default_of, in_force, with_defaults
from autoglm.config.paths import canonical, canonical_path, format_path, parse_path, variable
from autoglm.config.placeholders import Found, Resolver
from autoglm.config.schema import Key, bare, extra_of, fields_of, is_secret, is_section, leaf_keys
from autoglm.config.values import WrongValueError, typed
from autoglm.errors import ConfigError

S = TypeVar("S")


@dataclass(frozen=True, slots=True, repr=False)
class Config(Generic[S]):
    """The bound settings with their provenance: `said[key]` lists layers from weakest up.

    `secrets` are the keys whose value nobody may print.
    """

    settings: S
    said: Lines
    layers: tuple[str, ...]
    secrets: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Config({type(self.settings).__name__} of {', '.join(self.layers)})"

    def origin(self, key: str) -> Said:
        """What decided the key; for a map without entries, what took the last one out."""
        lines = self.said.get(key)
        if lines is None:
            below = [ls for k, ls in self.said.items() if k.startswith((f"{key}.", f"{key}["))]
            lines = max(below, key=lambda found: found[-1].rank, default=None)
        return lines[-1] if lines else Said("defaults", "", None)

    def is_secret(self, key: str) -> bool:
        """Also a key below one that is."""
        return any(key == s or key.startswith((f"{s}.", f"{s}[")) for s in self.secrets)


@dataclass(slots=True)
class _Values:
    """Values in force after placeholders; `secrets` are keys, `words` what they hold."""

    by_key: dict[str, Any] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)


def bind(
    schema: type[S],
    layers: Sequence[Layer],
    *,
    base: Path = Path(),
    whole: Any = None,
    ignore_unknown: bool = False,
    left_out: Mapping[str, str] | None = None,
) -> Config[S]:
    """Bind `layers` (weakest first) to `schema` and say where each value came from.

    `base`: where a relative `${file:}` starts. For a first look at a few keys, `schema` has only
    those and `whole` is the schema that placeholders may name; what even that does not know is left
    for later with `ignore_unknown`. `left_out`: sections that cannot be used, and why.
    Raises: ConfigError naming layer, place and next step.
    """
    names_of: Any = whole or schema
    said: dict[str, tuple[Said, ...]] = {}
    for rank, layer in enumerate(layers, start=1):
        found = keyed(names_of, layer, ignore_unknown=ignore_unknown, left_out=left_out or {})
        for key, leaf in found:
            line = Said(layer.name, place_of(layer, leaf), leaf.value, rank, leaf.is_entry)
            before = said.get(key, ())
            if before and before[-1].rank == rank:
                if not layer.last_counts:
                    raise said_twice(key, before[-1].where, line.where)
                before = before[:-1]
            said[key] = (*before, line)
    said = with_defaults(names_of, said)
    only: Any = schema
    wanted = None if whole is None else fields_of(only)
    values = _resolved(names_of, said, base, wanted)
    tree = _nest(names_of, values, said)
    _require(schema, tree, layers)
    settings: S = _validated(schema, tree, said, values)
    names = ("defaults", *(layer.name for layer in layers))
    return Config(settings, said, names, frozenset(values.secrets))


def _resolved(schema: Any, said: Lines, base: Path, wanted: Mapping[str, Any] | None) -> _Values:
    """Each value in force without its placeholders; `wanted`: only below these sections."""
    annotations = leaf_keys(schema)
    raw = dict(in_force(schema, said))
    spelled = {canonical_path(key): key for key in raw}
    values = _Values(secrets={key for key, made in annotations.items() if is_secret(made)})

    asked: dict[str, list[str]] = {}

    def lookup(name: str) -> Found | None:
        key = name if name in raw else spelled.get(_parts(name))
        if key is not None:
            return Found(raw[key], key, key in values.secrets)
        return _item(raw, spelled, name, annotations) or _default(schema, name, values.secrets)

    for key, value in raw.items():
        if wanted is not None and canonical(parse_path(key)[0]) not in wanted:
            continue
        resolver = Resolver(lookup, base)
        try:
            values.by_key[key] = resolver.resolve(value, (key,))
        except ConfigError as error:
            place = said[key][-1].where or said[key][-1].layer
            raise ConfigError(
                f"{place}: {error.message}", code=error.code, next_step=error.next_step
            ) from error
        if resolver.is_secret:
            values.secrets.add(key)
        asked[key] = resolver.asked
        if key in values.secrets and _is_one_placeholder(value):
            values.secrets.update(resolver.asked[:1])  # the same secret under another name
    while more := {k for k, names in asked.items() if values.secrets & {*names}} - values.secrets:
        values.secrets |= more
    for key in values.secrets:
        values.words.update(texts_of(values.by_key.get(key)))
    return values


def _is_one_placeholder(value: Any) -> bool:
    text = value if isinstance(value, str) else ""
    return text.startswith("${") and text.endswith("}") and text.count("${") == 1


def _parts(name: str) -> tuple[str, ...]:
    try:
        return canonical_path(name)
    except ValueError:
        return ()


def _item(
    raw: Mapping[str, Any],
    spelled: Mapping[tuple[str, ...], str],
    name: str,
    annotations: Mapping[str, Any],
) -> Found | None:
    """`release.steps[0]`: one item of a list."""
    parts = _parts(name)
    key = spelled.get(parts[:-1])
    if key is None or not parts[-1].isdecimal():
        return None
    items = typed(annotations.get(key), raw[key]) if "${" not in str(raw[key]) else raw[key]
    index = int(parts[-1])
    return Found(items[index], key) if isinstance(items, list) and index < len(items) else None


def _default(schema: Any, name: str, secrets: set[str]) -> Found | None:
    """A default of the schema, for placeholders that ask for a key nobody set."""
    parts = _parts(name)
    key = next((k for k in leaf_keys(schema) if canonical_path(k) == parts), None)
    value = None if key is None else default_of(schema, key)
    return None if value is None or key is None else Found(value, key, key in secrets)


def _nest(schema: Any, values: _Values, said: Lines) -> dict[str, Any]:
    annotations = leaf_keys(schema)
    tree: dict[str, Any] = {}
    for key, value in values.by_key.items():
        node = tree
        *parents, last = parse_path(key)
        for parent in parents:
            node = node.setdefault(parent, {})
        try:
            node[last] = typed(annotations.get(key), value)
            continue
        except ValueError as error:
            code = f"config.wrong_{'value' if isinstance(error, WrongValueError) else 'type'}"
            problem = hidden(str(error), values.words)
        raise ConfigError(  # out here: the chain would show the value
            f"{_shown(key, value, said, values)}: {problem}.",
            code=code,
            next_step=_what(annotations.get(key), key),
        )
    return tree


def _shown(key: str, value: Any, said: Lines, values: _Values) -> str:
    """`autoglm.yaml:3: training.lr = 'fast'`, without a secret and without a whole section."""
    lines = said.get(key, ())
    where = f"{lines[-1].where or lines[-1].layer}: " if lines else ""
    if isinstance(value, Mapping) and not lines:
        return f"{where}{key}"
    is_hidden = any(key == s or key.startswith(f"{s}.") for s in values.secrets)
    text = f"{value.total_seconds():g}s" if isinstance(value, timedelta) else repr(value)
    return f"{where}{key} = {MASK if is_hidden else hidden(text, values.words)}"


def _what(annotation: Any, key: str) -> str:
    """What the key is for, so that the next value can be right."""
    extra = extra_of(annotation, Key)
    what = f"{key}: {extra.what} " if extra is not None else ""
    return f"{what}See `autoglm config explain {key}`."


def _require(
    schema: Any, tree: Mapping[str, Any], layers: Sequence[Layer], prefix: str = ""
) -> None:
    for each in dataclasses.fields(schema):
        annotation = fields_of(schema)[canonical(each.name)][1]
        has_default = (
            each.default is not dataclasses.MISSING
            or each.default_factory is not dataclasses.MISSING
        )
        key = prefix + each.name
        if is_section(annotation) and (each.name in tree or not has_default):
            _require(bare(annotation), tree.get(each.name, {}), layers, key + ".")
        elif each.name not in tree and (not has_default or _is_needed(schema, annotation, tree)):
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


def _is_needed(schema: Any, annotation: Any, tree: Mapping[str, Any]) -> bool:
    """Whether the key may only be left out where another is said, and none of these is; or with
    another kind of part.
    """
    extra = extra_of(annotation, Key)
    if extra and extra.kinds:
        kind = next(field.default for field in dataclasses.fields(schema) if field.name == "kind")
        return tree.get("kind", kind) in extra.kinds
    return bool(extra and extra.unless) and not any(name in tree for name in extra.unless)


def _validated(schema: Any, tree: Mapping[str, Any], said: Lines, values: _Values) -> Any:
    from pydantic_core import ValidationError  # pydantic itself would cost 0.1 s of import

    from autoglm.contracts.record import from_json

    try:
        return from_json(schema, tree)
    except ValidationError as error:
        problems = list(_problems(error.errors(), said, values))
    # Out here, so that pydantic's own message, which has the values in it, is not chained.
    key = problems[0][0]
    raise ConfigError(
        "; ".join(text for _key, text in problems) + ".",
        code="config.wrong_value",
        next_step=_what(leaf_keys(schema).get(key), key),
    )


def _problems(errors: Sequence[Any], said: Lines, values: _Values) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) of each of pydantic's errors."""
    for item in errors:
        parts = [str(part) for part in item["loc"]]
        depth = next((n for n in range(len(parts), 0, -1) if format_path(parts[:n]) in said), 0)
        key = format_path(parts[:depth] if depth else parts)
        said_of = hidden(item["msg"].removeprefix("Value error, "), values.words)
        yield key, f"{_shown(key, item['input'], said, values)}: {said_of}"
