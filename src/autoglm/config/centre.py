"""The layer of a remote centre, with the last good copy on disk for when it cannot be reached."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from autoglm.config.layers import Layer, tree_layer
from autoglm.config.paths import canonical
from autoglm.errors import ConfigError

# Where the centre is found cannot be said by the centre.
OF_ITSELF = "config"


class Centre(Protocol):
    """`load` gives the whole tree (maps, or dotted names) and its revision.

    `watch` yields once for each time that something changed after `revision`, until `close`. Both
    raise ConfigError with code config.unreachable or config.remote_broken.
    """

    def load(self) -> tuple[Mapping[str, Any], str]: ...
    def watch(self, revision: str) -> Iterator[str]: ...
    def close(self) -> None: ...


def centre_layer(centre: Centre, *, name: str, copy: Path, is_required: bool) -> tuple[Layer, str]:
    """The centre's layer and its revision (`""` when it was not reached).

    Raises: ConfigError when it is required and cannot be had, or when it speaks of itself.
    """
    try:
        tree, revision = centre.load()
    except ConfigError as error:
        if is_required:
            raise
        return _last_good(copy, name, error), ""
    layer = tree_layer(f"remote centre ({name}, revision {revision})", tree, place=name)
    spoken = [leaf for leaf in layer.leaves if canonical(leaf.path[0]) == OF_ITSELF]
    if spoken:
        raise ConfigError(
            f"{name}: {'.'.join(spoken[0].path)} cannot be set in the remote centre.",
            code="config.centre_of_itself",
            next_step="Set it in a file, in the environment or by --set.",
        )
    _keep(copy, tree, revision)
    return layer, revision


def _last_good(copy: Path, name: str, error: ConfigError) -> Layer:
    try:
        kept = json.loads(copy.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Layer(f"remote centre ({name} not used: {error.message})")
    title = f"remote centre (last good copy of {kept['at']}: {error.message})"
    return tree_layer(title, kept["tree"], place=f"{name} (copy, revision {kept['revision']})")


def _keep(copy: Path, tree: Mapping[str, Any], revision: str) -> None:
    """Best effort: a command that only reads may have no right to write here."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    staging = copy.with_name(f".{copy.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        copy.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump({"at": at, "revision": revision, "tree": tree}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        staging.replace(copy)
