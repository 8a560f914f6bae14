"""YAML with the 1.2 core scalars and a line number for every leaf.

PyYAML's own rules are YAML 1.1: `no`, `on` and `12:30` become other things than text there and
`1e-5` becomes text. Here they are what they look like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from autoglm.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_NODES = 100_000


class _CoreLoader(yaml.CSafeLoader):
    """CSafeLoader with only the YAML 1.2 core schema's implicit types."""

    yaml_implicit_resolvers: dict[str, Any] = {}


_CORE = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
)
for _tag, _pattern, _first in _CORE:
    _CoreLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(rf"^(?:{_pattern})$"),
        list(_first.replace("\0", "")) + ([""] if "\0" in _first else []),
    )


class Text(str):
    """A value from a place that knows only text; the field it is bound to decides what it is."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Leaf:
    """A scalar or a whole list at `path` (raw keys), with its line counted from 1.

    `place` is said where there are no lines: the variable's name.
    """

    path: tuple[str, ...]
    value: Any
    line: int
    place: str = ""


def read_yaml(text: str, *, name: str) -> list[Leaf]:
    """Leaves of a YAML mapping in file order.

    Raises: ConfigError naming line and column for broken YAML, duplicate keys, too large input.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(
            f"{name} has {len(text):,} characters; a configuration has at most {MAX_BYTES:,}.",
            code="config.too_large",
        )
    loader = _CoreLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"{name}:1: the top level must be `key: value`.", code="config.broken"
            )
        return list(_leaves(node, (), name, _Budget(name)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(f"{place}: {error.problem}.", code="config.broken") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {error}.", code="config.broken") from error
    finally:
        loader.dispose()


def parse_scalar(text: str) -> Any:
    """A value as it would read in the file: `3e-4` is a number, `[1, 2]` a list, `no` is text."""
    try:
        (leaf,) = read_yaml("v: " + text, name="value")
        return leaf.value
    except (ConfigError, ValueError):
        return text


class _Budget:
    """Counts nodes as they are expanded, so that nested aliases cannot explode."""

    def __init__(self, name: str) -> None:
        self.name, self.left = name, MAX_NODES

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ConfigError(
                f"{self.name}: more than {MAX_NODES:,} values.", code="config.too_large"
            )


def _leaves(
    node: yaml.MappingNode, path: tuple[str, ...], name: str, budget: _Budget
) -> Iterator[Leaf]:
    seen: set[str] = set()
    for key_node, value_node in node.value:
        budget.spend()
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{name}:{line}: a key must be a plain word.", code="config.broken")
        key = key_node.value
        if key in seen:
            raise ConfigError(f"{name}:{line}: `{key}` stands twice.", code="config.duplicate_key")
        seen.add(key)
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            yield from _leaves(value_node, (*path, key), name, budget)
        else:
            yield Leaf((*path, key), _value(value_node, name, budget), line)


def _value(node: yaml.Node, name: str, budget: _Budget) -> Any:
    budget.spend()
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, name, budget) for child in node.value]
    if isinstance(node, yaml.MappingNode):
        return {k.value: _value(v, name, budget) for k, v in node.value}
    kind, text = node.tag.rpartition(":")[2], node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
    if kind == "float":
        return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower()))
    return text
