"""Configuration that changes while the process lives: validated whole, swapped at once, or not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from autoglm.config.config_loader import Config
from autoglm.config.paths import parse_path
from autoglm.config.provenance import flat
from autoglm.config.schema import Key, extra_of, leaf_keys
from autoglm.errors import ConfigError

S = TypeVar("S")
# Editors write a file in several strokes.
DEBOUNCE_MS = 40
# The watcher looks this often: less is 2 % of a core under `up`, more is felt.
STEP_MS = 30
RETRY_SECONDS = 1.0


class LiveConfig(Generic[S]):
    """Holds the tree in force. `read` loads all layers again.

    `on_change(config, keys)` is called after the swap, `on_refused(error)` when the old tree was
    kept; both from a watching thread. Between `start` and `stop`.
    """

    def __init__(
        self,
        current: Config[S],
        read: Callable[[], Config[S]],
        *,
        on_change: Callable[[Config[S], list[str]], None],
        on_refused: Callable[[ConfigError], None],
    ) -> None:
        self.current = current
        self._read, self._on_change, self._on_refused = read, on_change, on_refused
        self._swapping = threading.Lock()
        self._stop = threading.Event()

    def start(
        self,
        files: Sequence[Path],
        watch: Callable[[], Iterator[str]] | None = None,
    ) -> None:
        """Watch `files`, and the centre's `watch()` if there is one, until `stop`."""
        threading.Thread(
            target=self._watch_files, args=(files,), daemon=True, name="config-files"
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
            except ConfigError as error:
                self._on_refused(error)
                return False
            if not keys:
                return False
            self.current = new
        self._on_change(new, keys)
        return True

    def _watch_files(self, files: Sequence[Path]) -> None:
        from watchfiles import watch

        wanted = {str(path.resolve()) for path in files}
        folders = sorted({str(path.resolve().parent) for path in files})
        for changes in watch(
            *folders,
            stop_event=self._stop,
            recursive=False,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            rust_timeout=1000,
            watch_filter=None,
        ):
            if any(path in wanted for _, path in changes):
                self.reload()

    def _watch_centre(self, watch: Callable[[], Iterator[str]]) -> None:
        while not self._stop.is_set():
            try:
                for _revision in watch():
                    self.reload()
                    if self._stop.is_set():
                        return
            except ConfigError as error:
                self._on_refused(error)
            self._stop.wait(RETRY_SECONDS)


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
