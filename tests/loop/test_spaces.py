"""A search space on its way from the project's files into the record of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.errors import ConfigError, PluginError, SearchError
from autoglm.loop.app import App
from autoglm.loop.dataset_to_run import draft_spec, trigger_event
from autoglm.loop.names import check_names
from autoglm.loop.run_to_candidate import searchable_keys
from autoglm.plugins import registry
from autoglm.project import Project
from autoglm.search.space import Dimension, read_space
from autoglm.settings import Layers, from_snapshot, load_settings

PROJECT = """\
project: news
model: {backbone: "package:x"}
data: {source: {url: "sqlite:///a.db", table: t, key: id}, text: body, label: topic}
"""
OWN_FILE = """\
import autoglm
from autoglm import tune

autoglm.register("space", "mine", {
    "lr": tune.loguniform(1e-4, 1e-2),
    "training": {"dropout": tune.uniform(0.1, UPPER)},
    "lora_rank": tune.choice([4, 8]).when(dropout={"below": 0.3}),
})
"""


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)


def project(folder: Path, more: str, *, upper: float = 0.5) -> Path:
    (folder / "autoglm.yaml").write_text(PROJECT + more)
    (folder / "own.py").write_text(OWN_FILE.replace("UPPER", str(upper)))
    return folder


def drafted(app: App) -> RunSpec:
    dataset = DatasetVersion(
        project="news", uri="x", version=1, rows=1, split_rows={}, labels=("a",), label_counts={},
        rare_labels={}, unlabelled_rows=0, dead_rows=0, text="body", label="topic", split={},
        schema_digest="s", content_digest="d", positions={}, traceparent="", linked_traces=(),
        created_at=app.clock.now(),
    )  # fmt: skip
    event = trigger_event(app, "manual", cause="c", reason="r")
    return from_json(RunSpec, json.loads(json.dumps(to_json(draft_spec(event, dataset, app)))))


def dimensions(spec: RunSpec) -> dict[str, Dimension]:
    space = from_snapshot(spec.config).search.space
    found = read_space(space, searchable_keys("package:x"))
    return {dimension.key: dimension for dimension in found}


def test_a_run_keeps_the_space_that_a_file_of_the_project_gave(tmp_path: Path) -> None:
    app = App(project=Project(project(tmp_path, "imports: [own.py]\nsearch: {space: mine}\n")))
    spec = drafted(app)
    assert spec.config["search"]["space"] == {
        "lr": {"loguniform": [1e-4, 1e-2]},
        "training.dropout": {"uniform": [0.1, 0.5]},
        "lora_rank": {"choice": [4, 8], "when": {"dropout": {"below": 0.3}}},
    }
    first = dimensions(spec)
    project(tmp_path, "imports: [own.py]\nsearch: {space: mine}\n", upper=0.3)
    again = drafted(app)
    assert dimensions(again)["training.dropout"].high == 0.3  # the file is read for each run
    assert dimensions(spec) == first  # and a run that was admitted keeps what it had
    assert first["training.dropout"].high == 0.5


def test_a_space_in_calls_is_kept_as_maps(tmp_path: Path) -> None:
    more = "search: {space: {n_layers: choice([2,3,4]), lr: loguniform(1e-4,1e-2)}}\n"
    spec = drafted(App(project=Project(project(tmp_path, more))))
    assert spec.config["search"]["space"] == {
        "n_layers": {"choice": [2, 3, 4]},
        "lr": {"loguniform": [1e-4, 1e-2]},
    }
    assert dimensions(spec)["model.structure.num_layers"].choices == (2, 3, 4)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("search: {space: their}\n", "there is no space of this name. Known: none"),
        ("search: {space: {optimizer: choice([adamw, muno])}}\n", "Did you mean muon"),
        ("search: {space: {conv.channels: choice([8])}}\n", "reads convolution"),
        (
            "search: {space: {lr: choice([1e-3]), backbone: choice([a, b])}}\n",
            "model.backbone is one for all trials",
        ),
        (
            "search: {space: {lr: choice([1e-3])}, prior: {training.seed: 3}}\n",
            "training.seed is one for all trials",
        ),
        ("search: {space: {lr: choice([1])}, constraints: ['lrr < 1']}\n", "Did you mean lr"),
        ("evaluate: {metric: latency_ms}\n", "measured of the exported model.*at_most"),
        ("search: {objectives: [size_bytes]}\n", "measured of the exported model.*at_most"),
        (
            "search: {space: {num_layers: choice([2])}, constraints: [num_layers*hidden_size<9]}\n",
            "hidden_size is 0",
        ),
    ],
)
def test_the_configuration_is_judged_with_its_space(more: str, words: str, tmp_path: Path) -> None:
    settings = load_settings(project(tmp_path, more)).settings
    with pytest.raises((ConfigError, SearchError, PluginError), match=words) as caught:
        check_names(settings, Layers(folder=tmp_path), kinds=())
    assert caught.value.exit_code == 2


def test_a_constraint_on_a_size_that_is_said_or_searched_is_taken(tmp_path: Path) -> None:
    more = (
        "search: {space: {num_layers: choice([2])}, constraints: [num_layers * hidden_size < 999]}"
    )
    said = PROJECT.replace('"package:x"}', '"package:x", structure: {hidden_size: 192}}')
    (tmp_path / "autoglm.yaml").write_text(said + more)
    check_names(load_settings(tmp_path).settings, Layers(folder=tmp_path), kinds=())


def test_a_budget_may_be_a_timedelta_of_python(tmp_path: Path) -> None:
    said = {"search.budget": timedelta(minutes=2), "search.cpu_budget": timedelta(seconds=90)}
    made = Project(project(tmp_path, "")).with_values(said)
    spec = drafted(App(project=made))  # through JSON, as a run keeps it
    kept = from_snapshot(spec.config).search
    assert (kept.budget, kept.cpu_budget) == (timedelta(minutes=2), timedelta(seconds=90))
    with pytest.raises(ConfigError, match="search.budget = .*greater than 0"):
        made.with_values({"search.budget": timedelta(0)})
