"""From layers to settings: the first look, the allow-list, the centre's copy, the own files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from autoglm import settings
from autoglm.errors import ConfigError, PluginError
from autoglm.plugins import project_files, registry
from autoglm.project import Project
from autoglm.settings import COPY, Layers, read_settings

MINIMAL = """\
project: news
model: {backbone: "package:x"}
data: {source: {url: "sqlite:///a.db", table: t, key: id}, text: body, label: topic}
"""
CENTRE = "config: {centre: {kind: fake, url: 'http://x'}}\n"


def project(folder: Path, more: str = "") -> Layers:
    (folder / "autoglm.yaml").write_text(MINIMAL + more)
    return Layers(folder=folder)


class Fake:
    """A centre that says `tree`, or is away."""

    tree: Any = {"training.lr": "3e-4"}
    is_away = False
    config: Any = None

    def __init__(self, config: Any, profile: str) -> None:
        type(self).config = config

    def load(self) -> tuple[Mapping[str, Any], str]:
        if type(self).is_away:
            raise ConfigError("it is away", code="config.unreachable", next_step="Start it.")
        return type(self).tree, "7"

    def watch(self, revision: str) -> Iterator[str]:
        return iter(())

    def close(self) -> None:
        return None


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)
    registry.allow(())
    project_files._executed.clear()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    for name in ("tree", "is_away", "config"):
        monkeypatch.setattr(Fake, name, getattr(Fake, name))
    registry.register("config_centre", "fake", Fake)
    return Fake


def test_reading_settings_allows_and_forbids_nothing_yet(tmp_path: Path) -> None:
    where = project(tmp_path, "plugins: {allow: [good]}\n")
    assert read_settings(where).settings.plugins.allow == ("good",)
    assert registry._allowed == ()
    Project(tmp_path)
    assert registry._allowed == ("good",)


def test_an_allow_list_of_the_centre_counts(tmp_path: Path, fake: type[Fake]) -> None:
    project(tmp_path, CENTRE)
    fake.tree = {"plugins.allow": "only-this"}
    assert Project(tmp_path).settings.plugins.allow == ("only-this",)
    assert registry._allowed == ("only-this",)


def test_the_copy_of_the_centre_is_the_last_good_one(tmp_path: Path, fake: type[Fake]) -> None:
    where = project(tmp_path, CENTRE)
    assert read_settings(where).settings.training.lr == 3e-4
    fake.tree = {"training.lr": "rubbish"}
    with pytest.raises(ConfigError, match="rubbish"):
        read_settings(where)
    fake.is_away = True
    config = read_settings(where)
    assert config.settings.training.lr == 3e-4
    assert "last good copy" in config.origin("training.lr").layer


@pytest.mark.parametrize(
    "text", ["[]", "{}", "null", '{"at": 1, "tree": [], "revision": 1}', '{"at":"x"', "\x00"]
)
def test_a_damaged_copy_counts_as_none_and_is_said(
    tmp_path: Path, fake: type[Fake], text: str
) -> None:
    where = project(tmp_path, CENTRE)
    where.state.mkdir(parents=True)
    (where.state / COPY).write_text(text)
    fake.is_away = True
    config = read_settings(where)
    assert config.settings.training.lr == 2e-4
    assert any("is damaged" in layer for layer in config.layers)


@pytest.mark.parametrize("tree", [["a"], None, "x", {"": 1}, {"a..b": 1}, {"training": {"": 1}}])
def test_a_centre_that_says_something_else_than_keys_is_a_typed_error(
    tmp_path: Path, fake: type[Fake], tree: Any
) -> None:
    fake.tree = tree
    with pytest.raises(ConfigError) as caught:
        read_settings(project(tmp_path, CENTRE.replace("kind:", "required: true, kind:")))
    assert caught.value.code in {"config.remote_broken", "config.broken"}
    assert caught.value.next_step


def test_a_driver_that_breaks_is_a_centre_that_cannot_be_read(
    tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_self: Fake) -> Any:
        raise ZeroDivisionError("a bug in http://u:geheim@h")

    monkeypatch.setattr(fake, "load", load)
    layers = read_settings(project(tmp_path, CENTRE)).layers
    assert any("not used: fake gave an answer that cannot be read" in layer for layer in layers)
    assert "geheim" not in "".join(layers)


def test_the_first_look_resolves_files_and_names(
    tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "s.txt").write_text("the wrong file")
    monkeypatch.chdir(elsewhere)
    (tmp_path / "s.txt").write_text("right\n")
    (tmp_path / "news.py").write_text("")
    more = (
        "config: {centre: {kind: fake, password: '${file:s.txt}', prefix: '${project}'}}\n"
        "imports: ['${project}.py']\nplugins: {allow: ['${data.label}']}\n"
    )
    found = read_settings(project(tmp_path, more)).settings
    assert (fake.config.password, fake.config.prefix) == ("right", "news")
    assert (found.imports, found.plugins.allow) == (("news.py",), ("topic",))


OWN = """\
from dataclasses import dataclass
from autoglm import register

@register("section", "mysec")
@dataclass(frozen=True, kw_only=True)
class MySec:
    threshold: float = 0.5

@register("config_centre", "own")
class Own:
    def __init__(self, config, profile): ...
    def load(self): return {"training.lr": "7e-4", "mysec.threshold": "0.7"}, "1"
    def watch(self, revision): return iter(())
    def close(self): ...
"""


def test_a_centre_and_a_section_of_the_own_files_are_known_in_time(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    where = project(tmp_path, "imports: [own.py]\nconfig: {centre: {kind: own}}\n")
    config = read_settings(where)
    made: Any = config.settings
    assert (made.training.lr, made.mysec.threshold) == (7e-4, 0.7)
    project(tmp_path, "imports: [own.py]\n")
    again: Any = read_settings(where).settings
    assert again.mysec.threshold == 0.5, "shown also when nobody has set a key of it"


def test_broken_own_files_are_told_when_they_are_needed(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import sys\nsys.exit(3)\n")
    read_settings(project(tmp_path, "imports: [own.py]\n"))
    for more in ("mysec: {x: 1}\n", "config: {centre: {kind: own}}\n"):
        with pytest.raises(PluginError, match=r"own\.py:2: SystemExit"):
            read_settings(project(tmp_path, "imports: [own.py]\n" + more))


def test_a_first_look_costs_nothing_when_nobody_speaks_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    bound = settings.bind

    def counted(schema: Any, *arguments: Any, **more: Any) -> Any:
        looks.append(schema)
        return bound(schema, *arguments, **more)

    monkeypatch.setattr(settings, "bind", counted)
    read_settings(project(tmp_path))
    assert len(looks) == 1
    read_settings(project(tmp_path, "plugins: {allow: [x]}\n"))
    assert len(looks) == 3


def test_two_further_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    project(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.yaml").write_text("training: {epochs: 4}\n")
    files = [tmp_path / "a/x.yaml", tmp_path / "b/x.yaml"]
    config = Project(tmp_path, files=files).config
    assert [s.where for s in config.said["training.epochs"]] == [f"{path}:1" for path in files]


def test_the_copy_is_kept_for_this_user_alone(tmp_path: Path, fake: type[Fake]) -> None:
    where = project(tmp_path, CENTRE)
    read_settings(where)
    copy = where.state / COPY
    assert json.loads(copy.read_text())["tree"] == fake.tree
    assert (copy.stat().st_mode & 0o777, where.state.stat().st_mode & 0o777) == (0o600, 0o700)
