"""Which layer said what: the documents behind `config explain` and `config show`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoglm.config.config_loader import Config
from autoglm.config.masking import MASK, masked
from autoglm.config.merging import default_of, spread
from autoglm.config.paths import canonical, format_path, nearest, parse_path
from autoglm.config.schema import leaf_keys
from autoglm.contracts.record import to_json
from autoglm.errors import ConfigError


def explain(config: Config[Any], key: str) -> dict[str, Any]:
    """Every layer asked for `key` (any relaxed spelling), weakest first, and what it said.

    Raises: ConfigError for a key that is not there, with the nearest one.
    """
    values = flat(config.settings)
    defaults = flat_defaults(config.settings)
    found = _key(key, {**values, **config.said})
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
                # A default is in everybody's code; it hides nothing.
                "value": value if is_default else shown(config, found, value),
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


def _key(asked: str, known: Mapping[str, Any]) -> str:
    """The known key that `asked` spells, level by level."""
    names = {tuple(map(canonical, parse_path(name))): name for name in known}
    try:
        wanted = tuple(map(canonical, parse_path(asked)))
    except ValueError as error:
        raise ConfigError(
            f"{error}.", code="config.unknown_key", next_step="See `autoglm config show`."
        ) from error
    if asked in known or wanted in names:
        return asked if asked in known else names[wanted]
    below = sorted(name for parts, name in names.items() if parts[: len(wanted)] == wanted)
    if below:
        raise ConfigError(
            f"{asked} is a section.",
            code="config.unknown_key",
            next_step=f"Ask for one of its keys: {', '.join(below[:8])}.",
        )
    spelled = {canonical(name): name for name in known}
    near = nearest(canonical(asked), spelled)
    hint = f"Did you mean {spelled[near]}?" if near else "See `autoglm config show`."
    raise ConfigError(f"no key {asked}.", code="config.unknown_key", next_step=hint)


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
    if config.is_secret(key) and value not in (None, "", {}, []):
        return MASK
    return _masked(value)


def _masked(value: Any) -> Any:
    if isinstance(value, list):
        return [_masked(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _masked(inner) for key, inner in value.items()}
    return masked(value) if isinstance(value, str) else value


def flat(settings: Any) -> dict[str, Any]:
    """Dotted key → value in force; free maps are spread, lists are values."""
    return {format_path(path): value for path, value in spread(to_json(settings), ())}


def flat_defaults(settings: Any) -> dict[str, Any]:
    """Dotted key → the schema's own default, for the keys that have one."""
    found: dict[str, Any] = {}
    schema: Any = type(settings)
    for key in leaf_keys(schema):
        value = default_of(schema, key)
        if value is not None:
            parts = parse_path(key)
            found |= {format_path(path): v for path, v in spread(to_json(value), parts)}
    return found
