"""Sections and duplicates of others: what is broken is left out, shown, and costs nobody else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from autoglm.errors import ConfigError, PluginError
from autoglm.evaluation.evaluator import MACRO_F1
from autoglm.plugins import project_files, registry
from autoglm.plugins.sections import section_problem
from autoglm.settings import load_settings

MINIMAL = """\
project: news
model: {backbone: "package:x"}
data: {source: {url: "sqlite:///a.db", table: t, key: id}, text: body, label: topic}
"""


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)
    registry.allow(())
    project_files._executed.clear()


class Entry:
    """What importlib.metadata gives, for a package that is not installed."""

    def __init__(self, name: str, part: Any, source: str = "their-package") -> None:
        self.name, self._part = name, part
        self.dist = type("dist", (), {"name": source})

    def load(self) -> Any:
        if isinstance(self._part, BaseException):
            raise self._part
        return self._part


def installed(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> None:
    """Beside what is there."""
    found: dict[str, list[Any]] = {k: list(v) for k, v in registry._entry_points().items()}
    for entry in entries:
        found.setdefault(entry.name, []).append(entry)
    monkeypatch.setattr(registry, "_entry_points", lambda: found)


@dataclass(frozen=True, kw_only=True)
class Good:
    threshold: float = 0.5
    token: SecretStr = SecretStr("")
    names: frozenset[str] = frozenset()
    limits: dict[str, int] = field(default_factory=dict)
    most: int | None = None


@dataclass(frozen=True, kw_only=True)
class Required:
    a: int


@dataclass(frozen=True, kw_only=True)
class Clash:
    a_b: int = 1
    aB: int = 2


@dataclass(frozen=True, kw_only=True)
class Unresolved:
    a: NotThere = 1  # type: ignore[name-defined]  # noqa: F821


class Odd:
    pass


@dataclass(frozen=True, kw_only=True)
class Arbitrary:
    a: Odd | None = None


@dataclass(frozen=True, kw_only=True)
class Unwritable:
    a: object = Odd()  # noqa: RUF009


@dataclass
class Mutable:
    a: int = 1


@dataclass(frozen=True)
class Positional:
    a: int = 1


@dataclass(frozen=True, kw_only=True)
class Failing:
    a: int = 1

    def __post_init__(self) -> None:
        raise RuntimeError("never made")


def with_prefix(prefix: Any) -> Any:
    return dataclass(frozen=True, kw_only=True)(type("P", (), {"env_prefix": prefix}))


BAD = [
    ("secreq", Required, "no default"),
    ("secclash", Clash, "one key"),
    ("secann", Unresolved, "NotThere"),
    ("secobj", Arbitrary, "Odd"),
    ("secjson", Unwritable, "Odd"),
    ("secmut", Mutable, "frozen"),
    ("secpos", Positional, "keyword-only"),
    ("secfail", Failing, "never made"),
    ("seccls", Odd, "dataclass"),
    ("my-section", Good, "lower-case letters"),
    ("class", Good, "word of Python"),
    ("training", Good, "section of the product"),
    ("Data", Good, "lower-case letters"),
    ("secpre", with_prefix("PA"), "env_prefix"),
    ("secpre", with_prefix("PATH"), "env_prefix"),
    ("secpre", with_prefix("X_"), "env_prefix"),
    ("secpre", with_prefix("LC_"), "env_prefix"),
    ("secpre", with_prefix("AUTOGLM_X_"), "env_prefix"),
    ("secpre", with_prefix(3), "env_prefix"),
    ("secexit", SystemExit(3), "SystemExit"),
    ("secboom", ZeroDivisionError("1/0"), "ZeroDivisionError"),
]


@pytest.mark.parametrize(("name", "part", "words"), BAD)
def test_a_section_that_cannot_stand_in_the_tree_is_left_out_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, part: Any, words: str
) -> None:
    installed(monkeypatch, Entry(f"section:{name}", part), Entry("section:good", Good))
    (tmp_path / "autoglm.yaml").write_text(MINIMAL + "good: {threshold: 0.7}\n")
    made: Any = load_settings(tmp_path).settings
    assert (made.good.threshold, made.training.epochs) == (0.7, 3)
    (found,) = [f for f in registry.survey() if (f.kind, f.name) == ("section", name)]
    assert words in found.problem
    if name in {"training", "Data"}:
        return
    (tmp_path / "autoglm.yaml").write_text(MINIMAL + f"{name}: {{a: 1}}\n")
    with pytest.raises(ConfigError, match="left out") as caught:
        load_settings(tmp_path)
    assert words in caught.value.message
    assert caught.value.next_step == "See `autoglm plugins`."


def test_a_sound_section_has_no_problem() -> None:
    assert section_problem("good", Good) == ""
    assert section_problem("good", with_prefix("MINE_")) == ""


def test_two_sections_of_one_key_or_one_prefix_are_both_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(
        monkeypatch,
        Entry("section:a_b", Good, "one"), Entry("section:ab", Good, "two"),
        Entry("section:c", with_prefix("MINE_")), Entry("section:d", with_prefix("MINE_")),
        Entry("section:good", Good),
    )  # fmt: skip
    assert set(registry.sections()) == {"good"}
    problems = {f.name: f.problem for f in registry.survey() if f.kind == "section"}
    assert all("plugin.duplicate" in problems[name] for name in ("a_b", "ab", "c", "d"))


def test_a_variable_of_a_section_that_is_left_out_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, Entry("section:secreq", Required))
    (tmp_path / "autoglm.yaml").write_text(MINIMAL)
    monkeypatch.setenv("AUTOGLM_SECREQ_A", "1")
    with pytest.raises(ConfigError, match="no default"):
        load_settings(tmp_path)


def test_a_module_that_leaves_is_broken_and_ctrl_c_is_the_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Other:
        pass

    installed(monkeypatch, Entry("evaluator:x", SystemExit(3)), Entry("step:y", GeneratorExit()),
              Entry("step:z", KeyboardInterrupt()))  # fmt: skip
    for kind, name in (("evaluator", "x"), ("step", "y")):
        with pytest.raises(PluginError) as caught:
            registry.get(kind, name)
        assert (caught.value.code, bool(caught.value.next_step)) == ("plugin.broken", True)
    with pytest.raises(KeyboardInterrupt):
        registry.get("step", "z")


def test_a_part_whose_attributes_raise_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Raising:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no")

    installed(monkeypatch, Entry("evaluator:x", Raising()))
    with pytest.raises(PluginError, match="cannot be looked at"):
        registry.get("evaluator", "x")


class Metric:
    def evaluate(self, truth: Any, prediction: Any, rows: Any = ()) -> Any:
        return None


def test_a_part_of_ours_gives_way_only_to_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, Entry("evaluator:macro_f1", Metric))
    with pytest.raises(PluginError, match="open-autoglm and from their-package") as caught:
        registry.get("evaluator", "macro_f1")
    assert caught.value.code == "plugin.duplicate"
    registry.allow(("somebody-else",))
    assert registry.get("evaluator", "macro_f1") is MACRO_F1, "what is not allowed is not there"
    for named in ("evaluator:macro_f1", "their-package"):
        registry.allow((named,))
        assert registry.get("evaluator", "macro_f1") is Metric


def test_own_files_replace_a_part_of_ours_only_when_they_say_so(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="by open-autoglm and by register") as caught:
        registry.register("evaluator", "macro_f1", Metric)
    assert caught.value.code == "plugin.duplicate"
    registry.register("evaluator", "macro_f1", Metric, replace=True)
    assert registry.get("evaluator", "macro_f1") is Metric


TWICE = """\
from autoglm import register

class Part:
    def evaluate(self, truth, prediction, rows=()):
        return None

register("evaluator", "mine", Part)
register("evaluator", "mine", Part)
"""


def test_two_parts_of_one_name_in_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(TWICE)
    with pytest.raises(PluginError, match=r"registered twice: by parts\.py and by parts\.py"):
        project_files.execute(project_files.read_files(tmp_path, ["parts.py"]), tmp_path / "code")


def test_considering_an_allow_list_changes_nothing_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, Entry("section:good", Good))
    with registry.considering(("nothing",)):
        assert registry.sections() == {}
    assert set(registry.sections()) == {"good"}


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("section", "my-section", "letters, digits and _"),
        ("evaluator", "import", "word of Python"),
        ("evaluator", "json", "json"),
        ("step", "open-autoglm", "open-autoglm"),
        ("step", "tests", "tests"),
    ],
)
def test_a_skeleton_is_refused_a_name_that_cannot_work(
    tmp_path: Path, kind: str, name: str, words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoglm.cli", "init", str(tmp_path / "x"), "--plugin", kind, name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "next:" in done.stderr
    assert not (tmp_path / "x").exists()
