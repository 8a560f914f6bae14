"""Changes while the process lives: whole or not at all, and no mistake ends the watching."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoglm.config.config_loader import Config
from autoglm.config.live import LiveConfig
from autoglm.errors import ConfigError
from autoglm.loop.names import judge
from autoglm.plugins import registry
from autoglm.project import Project
from autoglm.settings import Layers, Settings, read_settings

MINIMAL = """\
project: news
model: {backbone: "package:x"}
data: {source: {url: "sqlite:///a.db", table: t, key: id}, text: body, label: topic}
"""


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s")


def write(folder: Path, more: str = "") -> None:
    """As editors do: the old file or the new one, never half of it."""
    staging = folder / "staging"
    staging.write_text(MINIMAL + more)
    staging.replace(folder / "autoglm.yaml")


class Followed:
    """A project that is watched, and what was heard of it. `on_change` may be made to fail."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.changes: list[list[str]] = []
        self.alarms: list[ConfigError] = []
        self.failure: Exception | None = None
        self.project = Project(folder, **more)
        self.live = self.project.follow(
            on_change=self._on_change, alarm=self.alarms.append, judge=judge(self.project.layers)
        )

    def _on_change(self, keys: list[str]) -> None:
        self.changes.append(keys)
        if self.failure is not None:
            raise self.failure

    def alarm(self) -> ConfigError:
        error: ConfigError = until(lambda: self.alarms and self.alarms.pop())
        return error

    def epochs_become(self, wanted: int) -> None:
        until(lambda: self.project.settings.training.epochs == wanted)


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[Followed]:
    write(tmp_path)
    found = Followed(tmp_path)
    yield found
    found.live.stop()


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ("training: {epochs: !!int foo}\n", "config.broken"),
        ("search: {budget: 1e30}\n", "config.wrong_type"),
        ("imports: [own.py]\nmine: {x: 1}\n", "plugin.broken"),
        ("trigger: {cron: bogus}\n", "config.wrong_value"),
        ("trigger: {cron: '0 0 * * *', time_zone: Mars}\n", "config.wrong_value"),
        ("evaluate: {metric: bogus}\n", "config.not_reloadable plugin.unknown"),
        ("search: {sampler: bogus}\n", "plugin.unknown"),
        ("plugins: {steps: {nope: 3}}\n", "config.wrong_value"),
        ("search: {space: {bogus: {choice: [1]}}}\n", "search."),
    ],
)
def test_what_config_check_refuses_is_refused_and_the_next_change_is_seen(
    followed: Followed, tmp_path: Path, more: str, code: str
) -> None:
    (tmp_path / "own.py").write_text("1/0\n")
    write(tmp_path, more)
    error = followed.alarm()
    assert isinstance(error, ConfigError)
    assert error.code in code or error.code.startswith(code)
    assert followed.project.settings.training.epochs == 3
    write(tmp_path, "training: {epochs: 7}\n")
    followed.epochs_become(7)


def test_a_listener_that_fails_does_not_end_the_watching(
    followed: Followed, tmp_path: Path
) -> None:
    followed.failure = RuntimeError("out of order")
    for number in (4, 5, 6):
        write(tmp_path, f"training: {{epochs: {number}}}\n")
        followed.epochs_become(number)
        assert (followed.alarm().code, len(followed.changes)) == ("config.broken", number - 3)


def test_a_watcher_of_the_centre_survives_what_a_driver_raises(tmp_path: Path) -> None:
    write(tmp_path)
    current = read_settings(Layers(folder=tmp_path))
    heard: list[ConfigError] = []
    rounds = iter([ZeroDivisionError("driver"), ConfigError("away", code="config.unreachable")])

    def watch() -> Iterator[str]:
        error = next(rounds, None)
        if error is not None:
            raise error
        live.stop()
        return iter(())

    live: LiveConfig[Settings] = LiveConfig(
        current, lambda: current, on_change=lambda *_: None, on_refused=heard.append
    )
    live._stop.wait = lambda _timeout=None: live._stop.is_set()  # type: ignore[method-assign]
    live._watch_centre(watch)
    assert [error.code for error in heard] == ["config.broken", "config.unreachable"]


def test_a_refused_change_leaves_the_allow_list_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, "plugins: {allow: [good]}\n")
    found = Followed(tmp_path)
    try:
        assert registry._allowed == ("good",)
        for more in ("plugins: {allow: [evil]}\n", "plugins: {allow: []}\ntraining: {lr: zz}\n"):
            write(tmp_path, more)
            found.alarm()
            assert registry._allowed == ("good",)
    finally:
        found.live.stop()
        registry.allow(())


def test_a_mounted_config_map_is_followed_through_its_links(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"v{number}").mkdir()
        (tmp_path / f"v{number}/c.yaml").write_text(MINIMAL + f"training: {{epochs: {number}}}\n")
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount/data").symlink_to("../v1")
    (tmp_path / "project").mkdir()
    (tmp_path / "project/autoglm.yaml").symlink_to("../mount/data/c.yaml")
    found = Followed(tmp_path / "project")
    try:
        assert found.project.settings.training.epochs == 1
        (tmp_path / "mount/new").symlink_to("../v2")
        (tmp_path / "mount/new").replace(tmp_path / "mount/data")
        found.epochs_become(2)
    finally:
        found.live.stop()


def test_files_that_come_later_are_followed_too(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "autoglm.prod.yaml").write_text("")
    found = Followed(tmp_path, profile="prod")
    try:
        (tmp_path / "autoglm.properties").write_text("training.epochs=8\n")
        found.epochs_become(8)
        (tmp_path / "autoglm.prod.properties").write_text("training.epochs=9\n")
        found.epochs_become(9)
    finally:
        found.live.stop()


def test_a_file_that_is_emptied_before_it_is_written_is_one_change(
    followed: Followed, tmp_path: Path
) -> None:
    with (tmp_path / "autoglm.yaml").open("w") as stream:
        time.sleep(0.05)  # the watcher looks in between
        stream.write(MINIMAL + "training: {epochs: 8}\n")
    followed.epochs_become(8)
    assert followed.alarms == []


def test_a_judge_that_breaks_keeps_the_old_tree(tmp_path: Path) -> None:
    write(tmp_path)
    current = read_settings(Layers(folder=tmp_path))
    newer = read_settings(Layers(folder=tmp_path, assignments=("training.epochs=9",)))
    heard: list[ConfigError] = []

    def broken(_config: Config[Settings]) -> None:
        raise KeyError("x")

    live: LiveConfig[Settings] = LiveConfig(
        current, lambda: newer, on_change=lambda *_: None, on_refused=heard.append, judge=broken
    )
    assert (live.reload(), live.current, [e.code for e in heard]) == (
        False, current, ["config.broken"],
    )  # fmt: skip
