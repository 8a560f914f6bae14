"""What says something: files, environment, remote centre, command line; each a list of leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoglm.config.paths import parse_path
from autoglm.config.properties_reader import read_properties
from autoglm.config.yaml_reader import MAX_BYTES, MAX_DEPTH, Leaf, Text, read_yaml
from autoglm.errors import ConfigError

PREFIX = "AUTOGLM_"
# Ours, but not keys of a project: they steer the process itself.
PROCESS_VARIABLES = frozenset({"AUTOGLM_FAILPOINT", "AUTOGLM_DEMO_ROWS", "AUTOGLM_PROFILE"})


@dataclass(frozen=True, slots=True)
class Layer:
    """`place` stands before the line in messages. An environment's names are bound later, when
    the schema is known: `variables` holds them, `prefixes` says which section a prefix opens.
    `last_counts`: a key may be said again, as on a command line; elsewhere that is a mistake.
    """

    name: str
    leaves: Sequence[Leaf] = ()
    place: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    last_counts: bool = False


def file_layer(path: Path, *, name: str = "") -> Layer:
    """`.properties` by its name, everything else is YAML. `name` is said in place of the file's.

    Raises: ConfigError.
    """
    name = name or path.name
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= 4 * MAX_BYTES else "x" * (MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist.",
            code="config.missing_file",
            next_step="Correct the path, or make a project with `autoglm init`.",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}.",
            code="config.unreadable",
            next_step="It must be a UTF-8 text file that this user may read.",
        ) from error
    read = read_properties if path.suffix == ".properties" else read_yaml
    return Layer(name, read(text, name=name), name)


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
    """Raises: ConfigError for what is not KEY=VALUE; the value is not repeated."""
    leaves = []
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise _not_an_assignment(key, "there is no KEY=VALUE")
        try:
            leaves.append(Leaf(parse_path(key.strip()), Text(value), 0, is_entry=True))
        except ValueError as error:
            raise _not_an_assignment(key, str(error)) from error
    return Layer("command line", leaves, "--set", last_counts=True)


def _not_an_assignment(key: str, problem: str) -> ConfigError:
    return ConfigError(
        f"--set {key}: {problem}.",
        code="config.broken",
        next_step="Write --set KEY=VALUE, as --set training.lr=3e-4.",
    )


def tree_layer(name: str, tree: Mapping[str, Any], *, place: str) -> Layer:
    """A layer from a tree of maps whose keys may be dotted (`{"training.lr": "1e-3"}`).

    Raises: ConfigError for a tree that is no map, or deeper than a file may be.
    """
    return Layer(name, list(_leaves(tree, (), place)), place)


def frozen_layer(name: str, tree: Mapping[str, Any]) -> Layer:
    """A layer from a run's snapshot: keys and values as they stand, nothing is read out of them."""
    return Layer(name, list(_frozen(tree, ())), name)


def _frozen(value: Any, path: tuple[str, ...]) -> Iterator[Leaf]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _frozen(inner, (*path, key))
    else:
        yield Leaf(path, _literal(value), 0)


def _literal(value: Any) -> Any:
    """Placeholders were replaced when the run was admitted; what looks like one is text."""
    if isinstance(value, list):
        return [_literal(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _literal(inner) for key, inner in value.items()}
    return value.replace("${", "$${") if isinstance(value, str) else value


def _leaves(
    tree: Any, path: tuple[str, ...], place: str, *, is_entry: bool = False
) -> Iterator[Leaf]:
    if not isinstance(tree, Mapping) or len(path) > MAX_DEPTH:
        raise ConfigError(
            f"{place}: this is no map of keys, {MAX_DEPTH} deep at most.",
            code="config.broken",
            next_step=f"Correct what {place} holds.",
        )
    for raw, value in tree.items():
        try:
            parts = parse_path(str(raw))
        except ValueError as error:
            raise ConfigError(
                f"{place}: {error}.",
                code="config.broken",
                next_step=f"Rename or remove this key in {place}.",
            ) from error
        is_dotted = is_entry or len(parts) > 1
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, *parts), place, is_entry=is_dotted)
        else:
            text = Text(value) if isinstance(value, str) else value
            yield Leaf((*path, *parts), text, 0, is_entry=is_dotted)
