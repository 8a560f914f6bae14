"""A project on disk: its folder, its state, and the one process that owns it."""

from __future__ import annotations

import argparse
import contextlib
import copy
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from autoglm.config.centre import private_folder
from autoglm.config.config_loader import Config
from autoglm.datasets.table_store import connect_table
from autoglm.errors import ConfigError, OwnerError
from autoglm.plugins import registry
from autoglm.settings import (
    DEFAULT_PROFILE,
    FILE_NAME,
    TUNED_NAME,
    Layers,
    Settings,
    live_settings,
    read_settings,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from autoglm.config.live import LiveConfig
    from autoglm.datasets.feature_table import DeltaFeatureTable
    from autoglm.registry.model_registry import LocalModelRegistry


LOCK_ATTEMPTS = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """Who holds a project: `address` is where its API answers, `""` if it has none."""

    pid: int
    what: str
    address: str


class Project:
    """`Project(folder)` reads the settings and opens nothing else until it is asked for."""

    def __init__(
        self,
        folder: Path | str,
        *,
        profile: str = "",
        files: Sequence[Path | str] = (),
        assignments: Sequence[str] = (),
    ) -> None:
        self.folder = Path(folder).resolve()
        if not (self.folder / FILE_NAME).is_file():
            raise ConfigError(
                f"{self.folder} has no {FILE_NAME}.",
                code="config.no_project",
                next_step="Make one with `autoglm init DIR --from FILE`.",
            )
        if "?" in str(self.folder):
            raise ConfigError(
                f"{self.folder}: a project's path may not hold a question mark.",
                code="config.bad_folder",
                next_step="Rename the folder; databases read the rest of such a path as options.",
            )
        name = profile or os.environ.get("AUTOGLM_PROFILE", "") or DEFAULT_PROFILE
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name):
            raise ConfigError(
                f"profile {name!r}: letters, digits, - and _ only.",
                code="config.wrong_value",
                next_step="Choose another name for --profile or AUTOGLM_PROFILE.",
            )
        if f"autoglm.{name}.yaml" == TUNED_NAME:
            raise ConfigError(
                f"profile {name!r}: {TUNED_NAME} is what `autoglm search apply` writes.",
                code="config.wrong_value",
                next_step="Choose another name for --profile or AUTOGLM_PROFILE.",
            )
        self.layers = Layers(
            folder=self.folder,
            profile=name,
            more_files=tuple(Path(path).resolve() for path in files),
            assignments=tuple(assignments),
        )
        self.config: Config[Settings] = read_settings(self.layers)
        registry.allow(self.settings.plugins.allow)
        connect_table(self.settings.storage.table, self.settings.storage.options)
        self.state = self.layers.state

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """The same project and owner, with config keys set over every layer.

        A child process does not hear of them. Raises: ConfigError, PluginError.
        """
        made = copy.copy(self)
        made.layers = replace(self.layers, values={**self.layers.values, **values})
        made.config = read_settings(made.layers)
        return made

    @property
    def arguments(self) -> list[str]:
        """What opens the same project in a child process (see `from_arguments`)."""
        found = ["--project", str(self.folder), "--profile", self.layers.profile]
        for path in self.layers.more_files:
            found += ["--config", str(path)]
        for assignment in self.layers.assignments:
            found += ["--set", assignment]
        return found

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--project", type=Path, required=True)
        parser.add_argument("--profile", default="")
        parser.add_argument("--config", action="append", default=[])
        parser.add_argument("--set", action="append", default=[])

    @classmethod
    def from_arguments(cls, found: argparse.Namespace) -> Project:
        return cls(found.project, profile=found.profile, files=found.config, assignments=found.set)

    @property
    def settings(self) -> Settings:
        return self.config.settings

    def follow(
        self,
        *,
        on_change: Callable[[list[str]], None],
        alarm: Callable[[ConfigError], None],
        judge: Callable[[Config[Settings]], None] | None = None,
    ) -> LiveConfig[Settings]:
        """From now on `settings` follows files and centre; what is refused, also by `judge`, goes
        to `alarm`.

        A run is not touched: it keeps the snapshot that it was admitted with.
        """

        def swap(config: Config[Settings], keys: list[str]) -> None:
            self.config = config
            registry.allow(config.settings.plugins.allow)
            on_change(keys)

        return live_settings(self.layers, self.config, on_change=swap, alarm=alarm, judge=judge)

    @property
    def name(self) -> str:
        return self.settings.project

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def work(self) -> Path:
        """Where training works: stages of the run or study in hand, graphs, what was measured."""
        return self.state / "work"

    @property
    def routes_file(self) -> Path:
        return self.state / "routes.json"

    @cached_property
    def engine(self) -> Engine:
        """state.db, migrated. Only the owner may ask for it. Raises: StorageError."""
        from autoglm.state.engine import open_state

        return open_state(self.state / "state.db")

    @cached_property
    def reading_engine(self) -> Engine:
        """state.db for commands that only look. Raises: StorageError when there is none yet."""
        from autoglm.state.engine import open_state

        return open_state(self.state / "state.db", read_only=True)

    def table(self) -> DeltaFeatureTable:
        from autoglm.datasets.feature_table import DeltaFeatureTable

        data = self.settings.data
        key = data.source.key
        return DeltaFeatureTable(
            self.settings.storage.table or self.state / "table",
            project=self.name,
            key=key if isinstance(key, str) else ", ".join(key),
            text=data.input_column,
            label=data.answer_column,
        )

    def registry(self, *, read_only: bool = False) -> LocalModelRegistry:
        from autoglm.registry.model_registry import LocalModelRegistry

        engine = self.reading_engine if read_only else self.engine
        return LocalModelRegistry(engine, self.state / "models", project=self.name)

    @contextlib.contextmanager
    def own(self, what: str, *, address: str = "") -> Iterator[None]:
        """Hold the project for this process. Raises: OwnerError naming the pid that holds it."""
        private_folder(self.state)
        handle = os.open(self.state / "owner.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock(handle)
            self.announce(what, address)
            yield
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> None:
        """Who only looks for an owner holds the lock for a moment; that is waited for."""
        for attempt in range(LOCK_ATTEMPTS):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if attempt == LOCK_ATTEMPTS - 1:
                    raise self.owned_error() from None
                time.sleep(0.02)

    def announce(self, what: str, address: str) -> None:
        """Say who holds the project (the lock itself is the truth; this is for people)."""
        record = {"pid": os.getpid(), "what": what, "address": address}
        staging = self.state / f"owner.{os.getpid()}.json"
        staging.write_text(json.dumps(record))
        staging.replace(self.state / "owner.json")

    def owner(self) -> Owner | None:
        """The living owner, None when nobody holds the lock."""
        try:
            handle = os.open(self.state / "owner.lock", os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            record: dict[str, Any] = {}
            with contextlib.suppress(OSError, ValueError):  # between lock and announcement
                record = json.loads((self.state / "owner.json").read_text())
            return Owner(
                pid=int(record.get("pid", 0)),
                what=str(record.get("what", "autoglm")),
                address=str(record.get("address", "")),
            )
        finally:
            os.close(handle)
        return None

    def owned_error(self) -> OwnerError:
        owner = self.owner() or Owner(pid=0, what="autoglm", address="")
        return OwnerError(
            f"{self.folder} is held by process {owner.pid} (`{owner.what}`).",
            next_step="Wait for it, or stop it with Ctrl-C or `kill`.",
        )
