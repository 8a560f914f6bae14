"""Parts by `kind:name`, from the entry-point group `autoglm.plugins` or `register`; lazy."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from autoglm.errors import PluginError

GROUP = "autoglm.plugins"
_registered: dict[str, Any] = {}


def register(kind: str, name: str, part: Any, *, replace: bool = False) -> None:
    """Make `part` known as `kind:name` in this process. Raises: PluginError plugin.duplicate."""
    key = f"{kind}:{name}"
    if key in _registered and not replace:
        raise PluginError(
            f"{key} is registered twice.", code="plugin.duplicate", next_step="Pass replace=True."
        )
    _registered[key] = part


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def get(kind: str, name: str) -> Any:
    """The part, imported on first use. Raises: PluginError plugin.unknown, plugin.broken."""
    key = f"{kind}:{name}"
    if key in _registered:
        return _registered[key]
    entry = _entry_points().get(key)
    if entry is None:
        known = sorted(k for k in {*_registered, *_entry_points()} if k.startswith(kind + ":"))
        raise PluginError(
            f"there is no {key}.", code="plugin.unknown", next_step=f"Known: {', '.join(known)}."
        )
    try:
        return entry.load()
    except Exception as error:
        raise PluginError(f"{key} cannot be loaded: {error}.", code="plugin.broken") from error
