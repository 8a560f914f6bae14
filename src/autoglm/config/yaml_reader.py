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

from autoglm.config.call_form import quote_calls
from autoglm.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
MAX_DEPTH = 100


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

    `place` is said where there are no lines: the variable's name. `is_entry`: a dotted name led
    here, one entry of a map and not the map as it shall be.
    """

    path: tuple[str, ...]
    value: Any
    line: int
    place: str = ""
    is_entry: bool = False


def read_yaml(text: str, *, name: str) -> list[Leaf]:
    """Leaves of a YAML mapping in file order.

    Raises: ConfigError naming line and column for broken YAML, duplicate keys, too large input.
    """
    refuse_long(text, name)
    loader = _CoreLoader(quote_calls(text))
    try:
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise _broken(
                f"{name}:1", "the top level must be `key: value`", "Write one key a line."
            )
        return list(_leaves(node, (), name, _Budget(name)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise _broken(place, str(error.problem)) from error
    except yaml.YAMLError as error:
        raise _broken(name, str(error).replace("\n", " ")) from error
    except RecursionError as error:  # the parser's own, before there is anything to count
        raise _too_deep(name) from error
    finally:
        loader.dispose()


def parse_scalar(text: str) -> Any:
    """A value as it would read in the file: `3e-4` is a number, `[1, 2]` a list, `no` is text."""
    try:
        (leaf,) = read_yaml("v: " + text, name="value")
        return leaf.value
    except (ConfigError, ValueError):
        return text


def refuse_long(text: str, name: str) -> None:
    """Raises: ConfigError config.too_large."""
    if len(text) > MAX_BYTES:
        raise ConfigError(
            f"{name} has {len(text):,} characters; a configuration has at most {MAX_BYTES:,}.",
            code="config.too_large",
            next_step="Give the file that holds settings; data belongs in a source.",
        )


def _broken(place: str, problem: str, next_step: str = "") -> ConfigError:
    step = next_step or "Correct this place; YAML 1.2, spaces and no tabs before a key."
    return ConfigError(f"{place}: {problem}.", code="config.broken", next_step=step)


def _too_deep(place: str) -> ConfigError:
    return ConfigError(
        f"{place}: nested more than {MAX_DEPTH} deep.",
        code="config.too_large",
        next_step="Look for an alias that holds itself, or a bracket that is never closed.",
    )


class _Budget:
    """Counts nodes as they are expanded, so that nested aliases cannot explode."""

    def __init__(self, name: str) -> None:
        self.name, self.left = name, MAX_NODES

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ConfigError(
                f"{self.name}: more than {MAX_NODES:,} values.",
                code="config.too_large",
                next_step="Look for aliases (`*name`) that repeat each other.",
            )


def _leaves(
    node: yaml.MappingNode, path: tuple[str, ...], name: str, budget: _Budget
) -> Iterator[Leaf]:
    if len(path) > MAX_DEPTH:
        raise _too_deep(f"{name}:{node.start_mark.line + 1}")
    for key, line, value_node in _pairs(node, name, budget):
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            yield from _leaves(value_node, (*path, key), name, budget)
        else:
            yield Leaf((*path, key), _value(value_node, name, budget, len(path)), line)


def _pairs(
    node: yaml.MappingNode, name: str, budget: _Budget
) -> Iterator[tuple[str, int, yaml.Node]]:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        budget.spend()
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise _broken(f"{name}:{line}", "a key must be a plain word")
        key = key_node.value
        if key in seen:
            raise ConfigError(
                f"{name}:{line}: `{key}` stands twice, first in line {seen[key]}.",
                code="config.duplicate_key",
                next_step="Keep one of them.",
            )
        seen[key] = line
        yield key, line, value_node


def _value(node: yaml.Node, name: str, budget: _Budget, depth: int) -> Any:
    budget.spend()
    if depth > MAX_DEPTH:
        raise _too_deep(f"{name}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, name, budget, depth + 1) for child in node.value]
    if isinstance(node, yaml.MappingNode):
        return {
            key: _value(inner, name, budget, depth + 1)
            for key, _line, inner in _pairs(node, name, budget)
        }
    try:
        return _scalar(node.tag.rpartition(":")[2], node.value)
    except ValueError as error:  # an explicit tag on something else, or a number without end
        place = f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        raise _broken(place, f"this is no {node.tag.rpartition(':')[2]}") from error


def _scalar(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
    if kind == "float":
        return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower()))
    return text
