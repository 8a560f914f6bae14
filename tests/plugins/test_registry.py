"""Registering, finding and refusing parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoglm.contracts.run_spec import ProjectFile
from autoglm.errors import PluginError
from autoglm.plugins import project_files, registry
from autoglm.plugins.entries import entries_of
from autoglm.plugins.kinds import KINDS


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)
    registry.allow(())
    project_files._executed.clear()


class Metric:
    def evaluate(self, truth: Any, prediction: Any, rows: Any = ()) -> Any:
        return None


def refused(code: str, kind: Any, *arguments: Any) -> PluginError:
    with pytest.raises(PluginError) as caught:
        registry.register(kind, *arguments)
    assert caught.value.code == code
    return caught.value


def test_a_part_is_found_by_kind_and_name_and_a_near_name_is_told() -> None:
    registry.register("evaluator", "mine", Metric)
    assert registry.get("evaluator", "mine") is Metric
    with pytest.raises(PluginError) as caught:
        registry.get("evaluator", "mien")
    assert caught.value.next_step == "Did you mean mine?"


def test_what_is_no_such_part_is_refused_at_registration() -> None:
    refused("plugin.unknown_kind", "evalautor", "x", Metric)
    assert "lacks evaluate" in refused("plugin.missing_method", "evaluator", "x", object()).message
    refused("plugin.missing_method", "schedule", "x", 3)
    registry.register("evaluator", "x", Metric)
    assert "registered twice" in refused("plugin.duplicate", "evaluator", "x", Metric).message
    registry.register("evaluator", "x", Metric, replace=True)


def test_another_api_version_is_refused_with_both_numbers() -> None:
    class Old:
        name, kind, api_version = "old", "step", 7

        def execute(self, context: Any) -> None:
            return None

    error = refused("plugin.wrong_version", Old())
    assert "7" in error.message
    assert "1" in error.message


def test_every_kind_of_the_design_is_there_and_the_products_own_parts_come_by_the_same_door() -> (
    None
):
    assert set(KINDS) >= {
        "source", "broker", "table", "processor", "backbone", "head", "task", "attention",
        "optimizer", "schedule", "callback", "algorithm", "evaluator", "sampler",
        "metric_provider", "config_centre", "notifier", "renderer",
    }  # fmt: skip
    ours = [f for f in registry.survey(load_ours=True) if f.origin == registry.OURS]
    assert [f for f in ours if f.problem] == []
    assert {"source", "broker", "evaluator", "sampler", "attention"} <= {f.kind for f in ours}


def test_entry_points_are_those_that_importlib_finds() -> None:
    from importlib.metadata import entry_points

    ours = {e for entries in entries_of(registry.GROUP).values() for e in entries}
    assert ours == set(entry_points(group=registry.GROUP))
    assert entries_of("no.such.group") == {}


class Entry:
    """What importlib.metadata gives, for a package that is not installed."""

    class dist:
        name = "their-package"

    def __init__(self, name: str, part: Any) -> None:
        self.name, self._part = name, part

    def load(self) -> Any:
        if isinstance(self._part, Exception):
            raise self._part
        return self._part


def installed(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> None:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.name, []).append(entry)
    monkeypatch.setattr(registry, "_entry_points", lambda: found)


def test_a_broken_package_stops_only_who_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(
        monkeypatch,
        Entry("evaluator:good", Metric),
        Entry("evaluator:bad", ImportError("no module named x")),
        Entry("section:bad", ImportError("no module named y")),
    )
    assert registry.get("evaluator", "good") is Metric
    with pytest.raises(PluginError, match="no module named x"):
        registry.get("evaluator", "bad")
    assert registry.sections() == {}
    problems = {f"{f.kind}:{f.name}": f.problem for f in registry.survey()}
    assert problems["evaluator:good"] == ""
    assert "no module named x" in problems["evaluator:bad"]


def test_two_packages_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Entry("evaluator:x", Metric)
    other.dist = type("dist", (), {"name": "other-package"})  # type: ignore[misc, assignment]
    installed(monkeypatch, Entry("evaluator:x", Metric), other)
    with pytest.raises(PluginError, match="other-package and from their-package"):
        registry.get("evaluator", "x")


def test_what_is_not_allowed_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, Entry("evaluator:x", AssertionError("must not be imported")))
    registry.allow(("evaluator:y", "somebody"))
    with pytest.raises(PluginError) as caught:
        registry.get("evaluator", "x")
    assert caught.value.code == "plugin.not_allowed"
    registry.allow(("their-package",))
    with pytest.raises(PluginError, match="must not be imported"):
        registry.get("evaluator", "x")


PART = """\
from autoglm import register

@register("evaluator", "mine")
class Mine:
    value = VALUE
    def evaluate(self, truth, prediction, rows=()):
        return None
"""


def files(folder: Path, text: str) -> tuple[ProjectFile, ...]:
    (folder / "parts.py").write_text(text)
    return project_files.read_files(folder, ["parts.py"])


def test_a_changed_file_replaces_what_it_registered(tmp_path: Path) -> None:
    for value in ("1", "2"):
        project_files.execute(files(tmp_path, PART.replace("VALUE", value)), tmp_path / "code")
        assert registry.get("evaluator", "mine").value == int(value)
    project_files.execute(files(tmp_path, "x = 1\n"), tmp_path / "code")
    assert "mine" not in registry.names("evaluator")


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    for text, line in (("x = 1\nraise ValueError('no')\n", 2), ("x = 1\ny = (\n", 2)):
        with pytest.raises(PluginError, match=rf"parts\.py:{line}") as caught:
            project_files.execute(files(tmp_path, text), tmp_path / "code")
        assert caught.value.code == "plugin.broken"


def test_files_outside_of_the_project_are_refused(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "evil.py").write_text("")
    with pytest.raises(PluginError) as caught:
        project_files.read_files(tmp_path / "project", ["../evil.py"])
    assert caught.value.code == "plugin.import_outside"
    with pytest.raises(PluginError, match="cannot be read"):
        project_files.read_files(tmp_path / "project", ["none.py"])
