"""Configuration that changes while the process lives: validated whole, swapped at once, or not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from autoglm.config.config_loader import Config
from autoglm.config.masking import masked
from autoglm.config.paths import parse_path
from autoglm.config.provenance import flat
from autoglm.config.schema import Key, extra_of, leaf_keys
from autoglm.errors import AutoGLMError, ConfigError

S = TypeVar("S")
# Editors write a file in several strokes.
DEBOUNCE_MS = 40
# The watcher looks this often: less is 2 % of a core under `up`, more is felt.
STEP_MS = 30
# What no event tells of (a network file system, a folder that was not there) is seen by looking.
LOOK_MS = 1000
RETRY_SECONDS = 1.0
SETTLE_SECONDS, SETTLE_ROUNDS = 0.01, 30
MAX_LINKS = 64

Stamps = Mapping[Path, tuple[int, ...] | None]


class LiveConfig(Generic[S]):
    """Holds the tree in force. `read` loads all layers again; `judge` may refuse what it read.

    `on_change(config, keys)` is called after the swap, `on_refused(error)` when the old tree was
    kept; both from a watching thread. Between `start` and `stop`; nothing that a file, a centre or
    a callback does ends it before.
    """

    def __init__(
        self,
        current: Config[S],
        read: Callable[[], Config[S]],
        *,
        on_change: Callable[[Config[S], list[str]], None],
        on_refused: Callable[[ConfigError], None],
        judge: Callable[[Config[S]], None] | None = None,
    ) -> None:
        self.current = current
        self._read, self._judge = read, judge
        self._on_change, self._on_refused = on_change, on_refused
        self._swapping = threading.Lock()
        self._stop = threading.Event()

    def start(
        self,
        files: Callable[[], Sequence[Path]],
        watch: Callable[[], Iterator[str]] | None = None,
    ) -> None:
        """Watch what `files` names (also what is not there yet), and the centre's `watch()` if
        there is one, until `stop`.
        """
        stamps = _stamps(files())
        threading.Thread(
            target=self._watch_files, args=(files, stamps), daemon=True, name="config-files"
        ).start()
        if watch is not None:
            threading.Thread(
                target=self._watch_centre, args=(watch,), daemon=True, name="config-centre"
            ).start()

    def stop(self) -> None:
        self._stop.set()

    def reload(self) -> bool:
        """Read everything again; says whether another tree is in force now."""
        with self._swapping:
            try:
                new = self._read()
                keys = changed_keys(self.current.settings, new.settings)
                _refuse_fixed(new, keys)
                if keys and self._judge is not None:
                    self._judge(new)
            except Exception as error:  # whatever it is, the old tree is good and somebody is told
                self._refuse(error)
                return False
            if not keys:
                return False
            self.current = new
        try:
            self._on_change(new, keys)
        except Exception as error:  # the tree is in force; who listens is broken
            self._refuse(error)
        return True

    def _refuse(self, error: Exception) -> None:
        with contextlib.suppress(Exception):  # an alarm that fails cannot be told to anybody
            self._on_refused(as_config_error(error))

    def _watch_files(self, files: Callable[[], Sequence[Path]], stamps: Stamps) -> None:
        while not self._stop.is_set():
            try:
                for _ in self._touched(files()):
                    newest = _stamps(files())
                    if newest != stamps:
                        stamps = self._settled(files, newest)
                        self.reload()
            except Exception as error:  # a folder went away, the system has no watches left
                self._refuse(error)
            self._stop.wait(RETRY_SECONDS)

    def _settled(self, files: Callable[[], Sequence[Path]], newest: Stamps) -> Stamps:
        """Half of a file is no change: wait until nothing moves, and longer while one is empty,
        since many programs empty a file before they write it.
        """
        for round_number in range(SETTLE_ROUNDS):
            self._stop.wait(SETTLE_SECONDS)
            before, newest = newest, _stamps(files())
            is_empty = any(stamp and stamp[2] == 0 for stamp in newest.values())
            if newest == before and (not is_empty or round_number == SETTLE_ROUNDS - 1):
                break
        return newest

    def _touched(self, paths: Sequence[Path]) -> Iterator[Any]:
        """Each time that something happened near one of `paths`, and once a second."""
        from watchfiles import watch

        return watch(
            *sorted(map(str, _folders(paths))),
            stop_event=self._stop,
            recursive=False,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            rust_timeout=LOOK_MS,
            yield_on_timeout=True,
            watch_filter=None,
        )

    def _watch_centre(self, watch: Callable[[], Iterator[str]]) -> None:
        while not self._stop.is_set():
            try:
                for _revision in watch():
                    self.reload()
                    if self._stop.is_set():
                        return
            except Exception as error:  # a driver of somebody else's may raise anything
                self._refuse(error)
            self._stop.wait(RETRY_SECONDS)


def as_config_error(error: Exception) -> ConfigError:
    """`error` as one of ours: its own code if it has one."""
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, AutoGLMError):
        return ConfigError(error.message, code=error.code, next_step=error.next_step)
    return ConfigError(
        masked(f"{type(error).__name__}: {error}."),
        code="config.broken",
        next_step="Take the last change back; `autoglm config check` says more.",
    )


def _folders(paths: Sequence[Path]) -> set[Path]:
    """Where something happens when one of `paths` changes: its folder, and the folder of each
    link on the way to it, since a mounted config map is changed by turning a link.
    """
    found, pending = set(), [path.absolute() for path in paths]
    for path in pending:
        links = [part for part in (path, *path.parents) if part.is_symlink()]
        targets = [link.parent / link.readlink() for link in links]
        pending += [t.absolute() for t in targets if len(pending) < MAX_LINKS]
        found |= {path.parent, *(link.parent for link in links)}
    return {folder for folder in found if folder.is_dir()}


def _stamps(paths: Sequence[Path]) -> dict[Path, tuple[int, ...] | None]:
    """What tells one content of a file from another, through all links; None: not there."""
    found: dict[Path, tuple[int, ...] | None] = {}
    for path in paths:
        try:
            facts = path.stat()
            found[path] = (facts.st_ino, facts.st_dev, facts.st_size, facts.st_mtime_ns)
        except OSError:
            found[path] = None
    return found


def changed_keys(old: Any, new: Any) -> list[str]:
    """Dotted keys whose value differs."""
    before, after = flat(old), flat(new)
    gone = object()
    return sorted(
        key for key in {**before, **after} if before.get(key, gone) != after.get(key, gone)
    )


def _refuse_fixed(config: Config[Any], keys: Sequence[str]) -> None:
    schema: Any = type(config.settings)
    annotations = leaf_keys(schema)
    fixed = []
    for key in keys:
        parts = parse_path(key)
        owner = next(
            annotations[".".join(parts[:n])]
            for n in range(len(parts), 0, -1)
            if ".".join(parts[:n]) in annotations
        )
        extra = extra_of(owner, Key)
        if extra is None or not extra.is_reloadable:
            fixed.append(key)
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)} cannot change while the process runs; nothing was changed.",
            code="config.not_reloadable",
            next_step="Restart `autoglm up`, or take the change back.",
        )
