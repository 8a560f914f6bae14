"""Bad input, value by value: a typed error with layer, place and next step, or a clear reading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AllowInfNan

from autoglm.config import provenance
from autoglm.config.config_loader import bind
from autoglm.config.layers import command_line_layer, environment_layer
from autoglm.config.units import duration, num_bytes
from autoglm.errors import AutoGLMError, ConfigError, PluginError, SearchError
from autoglm.loop.names import check_names
from autoglm.project import Project
from autoglm.settings import Layers, load_settings

MINIMAL = """\
project: news
model: {backbone: "package:x"}
data: {source: {url: "sqlite:///a.db", table: t, key: id}, text: body, label: topic}
"""
LONG = "9" * 5000
DEEP = "a: " + "{a: " * 300 + "1" + "}" * 300


def load(folder: Path, more: str = "", *assignments: str) -> Any:
    (folder / "autoglm.yaml").write_text(MINIMAL + more)
    return load_settings(folder, assignments=assignments).settings


# Every mistake in one file, with its code; the line is 4 unless the place is said.
MISTAKES = [
    ("search: {budget: 1e30}\n", "config.wrong_type"),
    ("search: {budget: .inf}\n", "config.wrong_type"),
    ("search: {budget: .nan}\n", "config.wrong_type"),
    ("search: {budget: 1e400}\n", "config.wrong_type"),
    ("search: {budget: 9999999999d}\n", "config.wrong_type"),
    ("search: {budget: -5}\n", "config.wrong_type"),
    ("serving: {timeout: -5}\n", "config.wrong_type"),
    ("serving: {timeout: 0}\n", "config.wrong_value"),
    ("search: {trials: !!int foo}\n", "config.broken"),
    ("training: {lr: !!float x}\n", "config.broken"),
    (f"search: {{trials: {LONG}}}\n", "config.broken"),
    ("imports: &a [*a]\n", "config.too_large"),
    ("training: &a {b: *a}\n", "config.too_large"),
    ("search: {space: {lr: {choice: [{[a]: 1}]}}}\n", "config.broken"),
    ("search: {space: {lr: {choice: [{a: 1, a: 2}]}}}\n", "config.duplicate_key"),
    ("training: {lr: .inf}\n", "config.wrong_value"),
    ("training: {lr: 1e400}\n", "config.wrong_value"),
    ("training: {lr: .nan}\n", "config.wrong_value"),
    ("training: {lr: 'inf'}\n", "config.wrong_value"),
    ("training: {epochs: true}\n", "config.wrong_value"),
    ("training: {lr: false}\n", "config.wrong_value"),
    ("release: {steps: [true, 100]}\n", "config.wrong_value"),
    ("training: {epochs: 1_000}\n", "config.wrong_value"),
    ("training: {lr: 1_0.5}\n", "config.wrong_value"),
    ("trigger: {data_changed: no}\n", "config.wrong_value"),
    ("trigger: {data_changed: on}\n", "config.wrong_value"),
    ("trigger: {data_changed: 1}\n", "config.wrong_value"),
    ("storage: {budget: 1.5}\n", "config.wrong_type"),
    ("training: {lr: fast}\n", "config.wrong_value"),
    ("training: {lr: -1}\n", "config.wrong_value"),
    ("training: {warmup: 130%}\n", "config.wrong_type"),
    ("training: 3\n", "config.wrong_type"),
    ("training: {lrr: 1}\n", "config.unknown_key"),
    ("nothing_like_it: 1\n", "config.unknown_key"),
    ("training.lr: 3\n", "config.unknown_key"),
    ("training: {batch-size: 8, batchSize: 9}\n", "config.duplicate_key"),
    ("training: {lr: '${nowhere}'}\n", "config.placeholder"),
    ("training: {lr: '${file:none}'}\n", "config.placeholder"),
    ("training: {lr: '${file:binary}'}\n", "config.placeholder"),
    ('training: {lr: "${file:a\\0b}"}\n', "config.placeholder"),
    ("training: {lr: '${unclosed'}\n", "config.placeholder"),
    ("search: {sampler: '" + "${a:" * 2000 + "}" * 2000 + "'}\n", "config.placeholder"),
    ("search: {sampler: '${training.optimizer}'}\ntraining: {optimizer: '${search.sampler}'}\n",
     "config.cycle"),
    ("config: {centre: {kind: etcd, url: 'http://[::1'}}\n", "config.wrong_value"),
    ("config: {centre: {kind: spring, url: 'http://x', prefix: ''}}\n", "config.wrong_value"),
    ("config: {centre: {kind: etdc}}\n", "plugin.unknown"),
    ("project: other\n", "config.duplicate_key"),
    ("a: [1,\n", "config.broken"),
    ("\tproject: x\n", "config.broken"),
    (DEEP, "config.too_large"),
    ("[" * 3000, "config.too_large config.broken"),
    ("# " + "x" * 1_000_001, "config.too_large"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "code"), MISTAKES, ids=range(len(MISTAKES)))
def test_every_mistake_has_a_code_a_place_and_a_next_step(
    tmp_path: Path, more: str, code: str
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(AutoGLMError) as caught:
        load(tmp_path, more)
    error = caught.value
    assert error.code in code.split()
    assert "autoglm.yaml" in error.message or "config.centre" in error.message
    assert error.next_step
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("assignments", "code"),
    [
        (["training.lr"], "config.broken"),
        (["imports[²]=a"], "config.unknown_key config.wrong_type"),
        (["a..b=1"], "config.broken"),
        (["release.steps[0]=5", "release.steps[2]=100"], "config.wrong_type"),
        (["training={lr: 1"], "config.broken"),
        (["training=1"], "config.wrong_type"),
        (["data.processors.x=1"], "config.unknown_key"),
    ],
)
def test_every_mistake_on_the_command_line_too(
    tmp_path: Path, assignments: list[str], code: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "", *assignments)
    assert caught.value.code in code.split()
    assert "--set" in caught.value.message
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("imports: [none.py]\n", "none.py"),
        ("imports: [../x.py]\n", "../x.py"),
        ("evaluate: {metric: bogus}\n", "evaluate.metric"),
        ("plugins: {steps: {nope: 3}}\n", "plugins.steps.nope"),
        ("search: {space: {}}\n", "search space is empty"),
        ("search: {objectives: [accuracy, macro_f1, accuracy]}\n", "names accuracy 2 times"),
        ("trigger: {cron: bogus}\n", "trigger.cron"),
    ],
)
def test_what_config_check_finds_has_a_next_step(tmp_path: Path, more: str, words: str) -> None:
    settings = load(tmp_path, more)
    with pytest.raises((ConfigError, PluginError, SearchError)) as caught:
        check_names(settings, Layers(folder=tmp_path))
    assert words in caught.value.message
    assert caught.value.next_step


def test_a_missing_profile_or_file_has_a_next_step(tmp_path: Path) -> None:
    load(tmp_path)
    for more in ({"profile": "no"}, {"profile": "../x"}, {"files": [tmp_path / "none.yaml"]}):
        with pytest.raises(ConfigError) as caught:
            Project(tmp_path, **more)  # type: ignore[arg-type]
        assert caught.value.next_step


def test_two_spellings_of_one_key_name_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"autoglm\.yaml:5 and autoglm\.yaml:7: training\.lr"):
        load(tmp_path, "training:\n  lr: 1e-3\nTraining:\n  LR: 1e-4\n")
    monkeypatch.setenv("AUTOGLM_TRAINING_BATCH_SIZE", "8")
    monkeypatch.setenv("AUTOGLM_TRAINING_BATCHSIZE", "9")
    both = "AUTOGLM_TRAINING_BATCH_SIZE and AUTOGLM_TRAINING_BATCHSIZE"
    with pytest.raises(ConfigError, match=both):
        load(tmp_path)


def test_a_list_said_whole_and_by_index_is_said_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOGLM_RELEASE_STEPS", "5,100")
    monkeypatch.setenv("AUTOGLM_RELEASE_STEPS_0", "7")
    with pytest.raises(ConfigError, match="AUTOGLM_RELEASE_STEPS_0") as caught:
        load(tmp_path)
    assert caught.value.code == "config.duplicate_key"


def test_on_a_command_line_the_last_word_counts(tmp_path: Path) -> None:
    assert load(tmp_path, "", "training.epochs=4", "training.epochs=5").training.epochs == 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain:
    flag: bool = False
    number: float = 0.0
    most: Annotated[float, AllowInfNan(True)] = 0.0
    count: int = 0
    maybe: int | None = None


@pytest.mark.parametrize(("text", "flag"), [("true", True), ("False", False), ("1", True)])
def test_places_that_know_only_text_say_true_or_one(text: str, flag: bool) -> None:
    for layer in (
        environment_layer({"AUTOGLM_FLAG": f" {text} "}),
        command_line_layer([f"flag={text}"]),
    ):
        assert bind(Plain, [layer]).settings.flag is flag
    with pytest.raises(ConfigError, match="write true or false"):
        bind(Plain, [command_line_layer(["flag=yes"])])


def test_numbers_from_text_are_those_of_yaml() -> None:
    found = bind(
        Plain,
        [command_line_layer(["number=1e-4", "count=0x10", "most=.inf", "maybe=3"])],
    ).settings
    assert (found.number, found.count, found.most, found.maybe) == (1e-4, 16, float("inf"), 3)
    for wrong in ("number=1_000", "number=inf", "count=true", "maybe=true", "count=1.5"):
        with pytest.raises(ConfigError) as caught:
            bind(Plain, [command_line_layer([wrong])])
        assert caught.value.code == "config.wrong_value"


def test_sizes_and_times_are_exact_or_refused() -> None:
    assert num_bytes("9007199254740993") == 9007199254740993
    assert num_bytes("1.5KiB") == 1536
    assert duration("1h 30 m").total_seconds() == 5400
    for wrong in ("1.5", "1e99GB"):
        with pytest.raises(ValueError, match="whole number of bytes"):
            num_bytes(wrong)
    for wrong in ("1 0 s", "-5"):
        with pytest.raises(ValueError, match="write a duration"):
            duration(wrong)


def test_names_are_relaxed_in_marks_and_capitals_only(tmp_path: Path) -> None:
    for name in ("l$r", "lr日本"):
        with pytest.raises(ConfigError, match="unknown key"):
            load(tmp_path, f"training: {{{name}: 1e-3}}\n")


def test_explain_asks_level_by_level(tmp_path: Path) -> None:
    load(tmp_path)
    config = load_settings(tmp_path)
    for key, words in (("", "is not a key"), ("trainin", "no key"), ("training", "is a section"),
                       ("data_source.url", "no key")):  # fmt: skip
        with pytest.raises(ConfigError, match=words) as caught:
            provenance.explain(config, key)
        assert caught.value.next_step
