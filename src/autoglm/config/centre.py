"""The layer of a remote centre, with the last good copy on disk for when it cannot be reached."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from autoglm.config.layers import Layer, tree_layer
from autoglm.config.masking import masked
from autoglm.config.paths import canonical
from autoglm.errors import AutoGLMError, ConfigError

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """What a centre said: a layer, and what of it is to be kept once it has proved good."""

    layer: Layer
    revision: str = ""
    tree: Mapping[str, Any] | None = None

    def keep(self, copy: Path) -> None:
        """As the last good copy. Best effort: who only reads may have no right to write here."""
        if self.tree is not None:
            with contextlib.suppress(OSError, TypeError, ValueError):
                _write(copy, self.tree, self.revision)


def centre_layer(centre: Centre, *, name: str, copy: Path, is_required: bool) -> Heard:
    """The centre's layer, or the last good copy's when the centre was not reached.

    Raises: ConfigError when it is required and cannot be had, or when it speaks of itself.
    """
    try:
        tree, revision = _loaded(centre, name)
    except ConfigError as error:
        if is_required:
            raise
        return Heard(layer=_last_good(copy, name, error))
    layer = tree_layer(f"remote centre ({name}, revision {revision})", tree, place=name)
    spoken = [leaf for leaf in layer.leaves if canonical(leaf.path[0]) == OF_ITSELF]
    if spoken:
        raise ConfigError(
            f"{name}: {'.'.join(spoken[0].path)} cannot be set in the remote centre.",
            code="config.centre_of_itself",
            next_step="Set it in a file, in the environment or by --set.",
        )
    return Heard(layer=layer, revision=revision, tree=tree)


def _loaded(centre: Centre, name: str) -> tuple[Mapping[str, Any], str]:
    """Raises: ConfigError, whatever the driver does."""
    try:
        tree, revision = centre.load()
    except AutoGLMError as error:
        raise ConfigError(
            masked(error.message), code=error.code, next_step=error.next_step
        ) from error
    except Exception as error:
        raise remote_broken(name, f"{type(error).__name__}: {error}") from error
    if not isinstance(tree, Mapping):
        raise remote_broken(name, f"it gave {type(tree).__name__}, not a map")
    return tree, revision


def remote_broken(name: str, problem: str) -> ConfigError:
    """The centre answered, and the answer cannot be used."""
    return ConfigError(
        masked(f"{name} gave an answer that cannot be read: {problem}."),
        code="config.remote_broken",
        next_step="Compare config.centre.url and prefix with what the server holds.",
    )


def _last_good(copy: Path, name: str, error: ConfigError) -> Layer:
    reason = masked(error.message)
    if not copy.exists():
        return Layer(f"remote centre ({name} not used: {reason})")
    try:
        kept = json.loads(copy.read_text(encoding="utf-8"))
        place = f"{name} (copy, revision {kept['revision']})"
        return tree_layer(
            f"remote centre (last good copy of {kept['at']}: {reason})", kept["tree"], place=place
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError, ConfigError):
        return Layer(f"remote centre ({name} not used, its copy {copy} is damaged: {reason})")


def _write(copy: Path, tree: Mapping[str, Any], revision: str) -> None:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"at": at, "revision": revision, "tree": tree})
    staging = copy.with_name(f".{copy.name}.{os.getpid()}")
    private_folder(copy.parent)
    handle = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    staging.replace(copy)


def private_folder(folder: Path) -> Path:
    """`folder`, made if need be, for this user alone: rows, answers and settings lie in it."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    return folder
