"""Which layer said what: the documents behind `config explain` and `config show`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from autoglm.config.config_loader import MASK, Config
from autoglm.config.paths import canonical, format_path, nearest
from autoglm.config.schema import bare, fields_of, is_section
from autoglm.contracts.record import to_json
from autoglm.errors import ConfigError

# `scheme://user:password@host`: the user may be shown, the password may not.
_PASSWORD = re.compile(r"(://[^/:@\s]*):[^/@\s]+@")


def explain(config: Config[Any], key: str) -> dict[str, Any]:
    """Every layer asked for `key` (any relaxed spelling), weakest first, and what it said.

    Raises: ConfigError for a key that is not there, with the nearest one.
    """
    values = flat(config.settings)
    defaults = flat_defaults(config.settings)
    names = {canonical(name): name for name in {**values, **config.said}}
    found = names.get(canonical(key))
    below = sorted(n for n in values if canonical(n).startswith(canonical(key)))
    if found is None and below:
        raise ConfigError(
            f"{key} is a section.",
            code="config.unknown_key",
            next_step=f"Ask for one of its keys: {', '.join(below[:8])}.",
        )
    if found is None:
        near = nearest(canonical(key), names)
        hint = f"Did you mean {names[near]}?" if near else "See `autoglm config show`."
        raise ConfigError(f"no key {key}.", code="config.unknown_key", next_step=hint)
    said = {line.rank: line for line in config.said.get(found, ())}
    layers = []
    for rank, layer in enumerate(config.layers):
        line = said.get(rank)
        is_default = rank == 0 and found in defaults
        value = defaults.get(found) if rank == 0 else line.value if line else None
        layers.append(
            {
                "layer": layer,
                "said": is_default or line is not None,
                "value": shown(config, found, value),
                "where": line.where if line else "",
                "in_force": rank == max([*said, 0]),
            }
        )
    return {
        "key": found,
        "value": shown(config, found, values.get(found)),
        "layer": config.origin(found).layer,
        "layers": layers,
    }


def show(config: Config[Any]) -> list[dict[str, Any]]:
    """The effective tree as rows: key, value, layer, where."""
    rows = []
    for key, value in flat(config.settings).items():
        line = config.origin(key)
        rows.append(
            {
                "key": key,
                "value": shown(config, key, value),
                "layer": line.layer,
                "where": line.where,
            }
        )
    return rows


def shown(config: Config[Any], key: str, value: Any) -> Any:
    """`value` as people may see it."""
    if key in config.secrets and value not in (None, ""):
        return MASK
    if isinstance(value, list):
        return [shown(config, key, item) for item in value]
    return _PASSWORD.sub(rf"\1:{MASK}@", value) if isinstance(value, str) else value


def flat(settings: Any) -> dict[str, Any]:
    """Dotted key → value in force; free maps are spread, lists are values."""
    found: dict[str, Any] = {}
    _spread(to_json(settings), (), found)
    return found


def flat_defaults(settings: Any) -> dict[str, Any]:
    """Dotted key → the schema's own default, for the keys that have one."""
    found: dict[str, Any] = {}
    _defaults(type(settings), (), found)
    return found


def _defaults(section: Any, path: tuple[str, ...], found: dict[str, Any]) -> None:
    for field in dataclasses.fields(section):
        annotation = fields_of(section)[canonical(field.name)][1]
        here = (*path, field.name)
        if is_section(annotation):
            _defaults(bare(annotation), here, found)
        elif field.default is not dataclasses.MISSING:
            found[format_path(here)] = to_json(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            _spread(to_json(field.default_factory()), here, found)


def _spread(value: Any, path: tuple[str, ...], found: dict[str, Any]) -> None:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            _spread(inner, (*path, name), found)
    else:
        found[format_path(path)] = value
