"""What says something: files, environment, remote centre, command line; each a list of leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoglm.config.paths import parse_path
from autoglm.config.properties_reader import read_properties
from autoglm.config.yaml_reader import MAX_BYTES, Leaf, Text, read_yaml
from autoglm.errors import ConfigError

PREFIX = "AUTOGLM_"
# Ours, but not keys of a project: they steer the process itself.
PROCESS_VARIABLES = frozenset({"AUTOGLM_FAILPOINT", "AUTOGLM_DEMO_ROWS", "AUTOGLM_PROFILE"})


@dataclass(frozen=True, slots=True)
class Layer:
    """`place` stands before the line in messages. An environment's names are bound later, when
    the schema is known: `variables` holds them, `prefixes` says which section a prefix opens.
    """

    name: str
    leaves: Sequence[Leaf] = ()
    place: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)


def file_layer(path: Path) -> Layer:
    """`.properties` by its name, everything else is YAML. Raises: ConfigError."""
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= 4 * MAX_BYTES else "x" * (MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist.", code="config.missing_file", next_step="Run `autoglm init`."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", code="config.unreadable") from error
    read = read_properties if path.suffix == ".properties" else read_yaml
    return Layer(path.name, read(text, name=path.name), path.name)


def environment_layer(
    environ: Mapping[str, str], prefixes: Mapping[str, str] | None = None
) -> Layer:
    """`prefixes`: prefix → the section below which its names are keys (`""` = the top)."""
    known = prefixes or {PREFIX: ""}
    variables = {
        name: text
        for name, text in sorted(environ.items())
        if name not in PROCESS_VARIABLES and any(name.startswith(p) for p in known)
    }
    return Layer("environment", variables=variables, prefixes=known)


def command_line_layer(assignments: Sequence[str]) -> Layer:
    leaves = []
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: write KEY=VALUE.", code="config.broken")
        try:
            leaves.append(Leaf(parse_path(key.strip()), Text(value), 0))
        except ValueError as error:
            raise ConfigError(f"--set {text}: {error}.", code="config.broken") from error
    return Layer("command line", leaves, "--set")


def tree_layer(name: str, tree: Mapping[str, Any], *, place: str) -> Layer:
    """A layer from a tree of maps whose keys may be dotted (`{"training.lr": "1e-3"}`)."""
    return Layer(name, list(_leaves(tree, (), place)), place)


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...], place: str) -> list[Leaf]:
    found: list[Leaf] = []
    for raw, value in tree.items():
        try:
            parts = (*path, *parse_path(str(raw)))
        except ValueError as error:
            raise ConfigError(f"{place}: {error}.", code="config.broken") from error
        if isinstance(value, Mapping) and value:
            found += _leaves(value, parts, place)
        else:
            found.append(Leaf(parts, Text(value) if isinstance(value, str) else value, 0))
    return found
