from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoglm.config.config_loader import bind
from autoglm.config.layers import file_layer
from autoglm.config.units import duration, num_bytes, share
from autoglm.config.yaml_reader import parse_scalar, read_yaml
from autoglm.errors import ConfigError
from autoglm.plugins import registry
from autoglm.project import Project
from autoglm.settings import Settings, from_snapshot, inject, load_settings, snapshot
from autoglm.training.config import TrainingConfig

MINIMAL = """\
project: news
model: {backbone: "package:x"}
data:
  source: {url: "sqlite:///a.db", table: t, key: id}
  text: body
  label: topic
"""


def project(folder: Path, text: str = MINIMAL) -> Path:
    (folder / "autoglm.yaml").write_text(text)
    return folder


def refused(text: str, folder: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_settings(project(folder, text))
    return caught.value


def test_the_last_layer_that_says_something_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, MINIMAL + "training: {lr: 1e-3, epochs: 7, batch-size: 8}\n")
    monkeypatch.setenv("AUTOGLM_TRAINING_EPOCHS", "5")
    monkeypatch.setenv("AUTOGLM_TRAINING_BATCHSIZE", "16")
    config = load_settings(tmp_path, assignments=["training.epochs=2"])
    training = config.settings.training
    assert (training.lr, training.epochs, training.batch_size) == (1e-3, 2, 16)
    assert [s.layer for s in config.said["training.epochs"]] == [
        "autoglm.yaml",
        "environment",
        "command line",
    ]
    assert config.origin("training.lr").where == "autoglm.yaml:7"


def test_scalars_are_what_they_look_like() -> None:
    assert parse_scalar("1e-5") == 1e-5
    assert [parse_scalar(t) for t in ("no", "on", "12:30", "yes")] == ["no", "on", "12:30", "yes"]
    assert [parse_scalar(t) for t in ("true", "0x10", "null", "[1, 2]")] == [True, 16, None, [1, 2]]


def test_units_are_read() -> None:
    assert duration("200ms") == timedelta(milliseconds=200)
    assert duration("1h30m") == timedelta(minutes=90)
    assert duration(3) == timedelta(seconds=3)
    assert num_bytes("4GiB") == 4 * 2**30
    assert share("5%") == 0.05
    for wrong in ("5 parsecs", "", "ms"):
        with pytest.raises(ValueError, match="write a duration"):
            duration(wrong)


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    error = refused(MINIMAL + "training: {learning_rat: 1, lrr: 2}\n", tmp_path)
    assert error.code == "config.unknown_key"
    assert "autoglm.yaml:7" in error.message


def test_a_missing_key_names_every_layer_asked(tmp_path: Path) -> None:
    error = refused(MINIMAL.replace("  label: topic\n", ""), tmp_path)
    assert error.code == "config.missing"
    assert (
        "defaults (no value), autoglm.yaml (no key data.label), environment (no AUTOGLM_DATA_LABEL)"
        in error.message
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: [1,\n", "config.broken"),
        ("project: x\nproject: y\n", "config.duplicate_key"),
        ("\tproject: x\n", "config.broken"),
        ("- a\n", "config.broken"),
        (MINIMAL + "training: {lr: fast}\n", "config.wrong_value"),
        (MINIMAL + "training: {lr: -1}\n", "config.wrong_value"),
        (MINIMAL + "search: {budget: soon}\n", "config.wrong_type"),
        (MINIMAL + "training: 3\n", "config.wrong_type"),
        (MINIMAL + "a: &a [x,x]\nb: &b [*a,*a]\n", "config.unknown_key"),
    ],
)  # fmt: skip
def test_bad_files_end_in_a_typed_error(text: str, code: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path).code == code


def test_aliases_cannot_explode() -> None:
    layers = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    layers += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="more than"):
        read_yaml("\n".join(layers), name="bomb")


def test_placeholders_resolve_and_cycles_show_their_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_FOLDER", "/var/db")
    text = MINIMAL.replace("sqlite:///a.db", "sqlite:///${env:DB_FOLDER}/${project}.db")
    assert (
        load_settings(project(tmp_path, text)).settings.data.source.url
        == "sqlite:////var/db/news.db"
    )
    text = MINIMAL.replace("text: body", 'text: "${data.label}"').replace(
        "label: topic", 'label: "${data.text}"'
    )
    error = refused(text, tmp_path)
    assert error.code == "config.cycle"
    assert "data.text" in error.message


def test_a_snapshot_comes_back_as_it_was(tmp_path: Path) -> None:
    found = load_settings(project(tmp_path)).settings
    assert from_snapshot(snapshot(found)) == found


def test_a_stated_space_replaces_the_default_one(tmp_path: Path) -> None:
    found = load_settings(
        project(tmp_path, MINIMAL + "search: {space: {lr: {uniform: [0.1, 0.2]}}}\n")
    )
    assert found.settings.search.space == {"lr": {"uniform": [0.1, 0.2]}}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["max_length", "max-length", "maxLength", "MAX_LENGTH", "Max.Length".replace(".", "")]
        ),
        min_size=1,
        max_size=1,
    ),
    st.integers(8, 4096),
)
def test_every_relaxed_spelling_is_one_key(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], length: int
) -> None:
    folder = tmp_path_factory.mktemp("p")
    project(folder, MINIMAL + f"  {names[0]}: {length}\n")
    config = bind(Settings, [file_layer(folder / "autoglm.yaml")])
    assert config.settings.data.max_length == length


def test_a_profile_lies_on_top_and_has_its_own_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, MINIMAL + "training: {lr: 1e-3, epochs: 7}\n")
    (tmp_path / "autoglm.prod.yaml").write_text("training: {epochs: 9}\n")
    prod = Project(tmp_path, profile="prod")
    assert (prod.settings.training.lr, prod.settings.training.epochs) == (1e-3, 9)
    assert prod.state == tmp_path / ".autoglm" / "prod"
    assert Project(tmp_path).state == tmp_path / ".autoglm" / "default"
    monkeypatch.setenv("AUTOGLM_PROFILE", "prod")
    assert Project(tmp_path).settings.training.epochs == 9
    for name, code in (("staging", "config.missing_file"), ("../x", "config.wrong_value")):
        with pytest.raises(ConfigError) as caught:
            Project(tmp_path, profile=name)
        assert caught.value.code == code


def test_a_child_process_opens_the_same_project(tmp_path: Path) -> None:
    project(tmp_path)
    (tmp_path / "autoglm.prod.yaml").write_text("training: {epochs: 9}\n")
    (tmp_path / "more.properties").write_text("training.batch-size = 4\n")
    first = Project(
        tmp_path, profile="prod", files=[tmp_path / "more.properties"],
        assignments=["training.lr=5e-5"],
    )  # fmt: skip
    parser = argparse.ArgumentParser()
    Project.add_arguments(parser)
    second = Project.from_arguments(parser.parse_args(first.arguments))
    assert second.settings == first.settings
    assert second.state == first.state


def test_every_cell_of_ours_in_the_comparison_names_a_test_that_is_there() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "configuration.md").read_text()
    named = re.findall(r"yes: `(test_\w+)`", page)
    code = "".join(path.read_text() for path in (root / "tests").rglob("*.py"))
    assert len(named) >= 15
    assert [name for name in named if f"def {name}(" not in code] == []


@dataclass(frozen=True, kw_only=True, slots=True)
class Mine:
    threshold: float = 0.5


class WantsNothing:
    pass


class Inherits(WantsNothing):
    def __init__(self, training: TrainingConfig) -> None:
        self.training = training


class InheritsAll(Inherits):
    pass


class Wants:
    def __init__(self, config: Mine, training: TrainingConfig, *, word: str) -> None:
        self.config, self.training, self.word = config, training, word


def test_a_component_is_given_the_sections_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a plugin's section, with an environment prefix of its own, known before it is judged."""
    monkeypatch.setattr(registry, "sections", lambda: {"mine": (Mine, "MINE_")})
    project(tmp_path, MINIMAL + "mine: {threshold: 0.7}\ntraining: {lr: 0.5}\n")
    made = inject(Wants, load_settings(tmp_path).settings, word="w")
    assert (made.config.threshold, made.training.lr, made.word) == (0.7, 0.5, "w")
    settings = load_settings(tmp_path).settings
    assert isinstance(inject(WantsNothing, settings), WantsNothing)
    assert inject(InheritsAll, settings).training.lr == 0.5
    monkeypatch.setenv("MINE_THRESHOLD", "0.9")
    config = load_settings(tmp_path)
    assert inject(Wants, config.settings, word="w").config.threshold == 0.9
    assert config.origin("mine.threshold").where == "MINE_THRESHOLD"
    monkeypatch.setenv("MINE_THRESHHOLD", "0.9")
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path)
    assert caught.value.next_step == "Did you mean MINE_THRESHOLD?"
