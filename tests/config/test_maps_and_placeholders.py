"""What is in force of maps in several layers, and what a placeholder may name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autoglm.config import provenance
from autoglm.config.config_loader import Config
from autoglm.errors import ConfigError, SearchError
from autoglm.loop.names import check_names
from autoglm.plugins import registry
from autoglm.project import Project
from autoglm.search.config import default_space
from autoglm.settings import Layers, Settings, load_settings

MINIMAL = """\
project: news
model: {backbone: "package:x"}
data: {source: {url: "sqlite:///a.db", table: t, key: id}, text: body, label: topic}
"""
ONE = "search: {space: {lr: {choice: [1e-4, 1e-3]}}}\n"


def load(folder: Path, more: str = "", *assignments: str) -> Config[Settings]:
    (folder / "autoglm.yaml").write_text(MINIMAL + more)
    return load_settings(folder, assignments=assignments)


def space(folder: Path, more: str = "", *assignments: str) -> Any:
    return load(folder, more, *assignments).settings.search.space


def test_one_entry_by_name_changes_one_entry_of_the_default_map(tmp_path: Path) -> None:
    default = dict(default_space())
    changed = {"choice": [1e-4]}
    assert space(tmp_path, "", "search.space.lr.choice=[1e-4]") == {**default, "lr": changed}
    assert space(tmp_path, "", "search.space.lr={choice: [1e-4]}") == {**default, "lr": changed}
    (tmp_path / "autoglm.properties").write_text("search.space.lr={choice: [1e-4]}\n")
    config = load(tmp_path)
    assert config.settings.search.space == {**default, "lr": changed}
    assert config.origin("search.space.dropout.uniform").layer == "defaults"
    assert config.origin("search.space.lr.choice").layer == "autoglm.properties"


def test_a_map_that_is_written_out_stands_in_the_defaults_place(tmp_path: Path) -> None:
    assert set(space(tmp_path, ONE)) == {"lr"}
    assert set(space(tmp_path, "", "search.space={dropout: {choice: [0.1]}}")) == {"dropout"}
    assert set(space(tmp_path, ONE, "search.space.dropout={choice: [0.1]}")) == {"lr", "dropout"}


def attention(folder: Path, *assignments: str) -> Any:
    text = MINIMAL.replace('x"}', 'x", attention: {name: top_k, k: 8}}')
    (folder / "autoglm.yaml").write_text(text)
    return load_settings(folder, assignments=assignments).settings.model.attention


def test_options_of_an_attention_go_with_its_name(tmp_path: Path) -> None:
    assert attention(tmp_path, "model.attention.k=16") == {"name": "top_k", "k": 16}
    named = "model.attention.name=top_k"
    assert attention(tmp_path, named, "model.attention.k=16") == {"name": "top_k", "k": 16}
    assert attention(tmp_path, named) == {"name": "top_k", "k": 8}
    other = "model.attention.name=block_top_k"
    assert attention(tmp_path, other) == {"name": "block_top_k"}
    more = "model.attention.num_blocks=2"
    assert attention(tmp_path, other, more) == {"name": "block_top_k", "num_blocks": 2}
    assert attention(tmp_path, "model.attention=sdpa") == "sdpa"


def test_a_profile_with_another_attention_does_not_inherit_its_options(tmp_path: Path) -> None:
    attention(tmp_path)
    other = "model: {attention: {name: block_top_k, num_blocks: 4}}\n"
    (tmp_path / "autoglm.prod.yaml").write_text(other)
    found = Project(tmp_path, profile="prod").settings.model.attention
    assert found == {"name": "block_top_k", "num_blocks": 4}


def test_null_takes_entries_of_the_default_map_out(tmp_path: Path) -> None:
    more = "search: {space: {dropout: ~, trainable_layers: ~}}\n"
    assert set(space(tmp_path, more)) == {"lr"}


@pytest.mark.parametrize(
    ("more", "assignments"),
    [
        (ONE, ["search.space.lr=null"]),
        ("search: {space: {lr: ~, dropout: ~, trainable_layers: ~}}\n", []),
        ("search: {space: {}}\n", []),
        (ONE, ["search.space={}"]),
    ],
)
def test_an_emptied_space_is_empty_and_the_search_says_so(
    tmp_path: Path, more: str, assignments: list[str]
) -> None:
    config = load(tmp_path, more, *assignments)
    assert config.settings.search.space == {}
    (row,) = [r for r in provenance.show(config) if r["key"].startswith("search.space")]
    assert row["layer"] == ("command line" if assignments else "autoglm.yaml")
    with pytest.raises(SearchError, match="search space is empty"):
        check_names(config.settings, Layers(folder=tmp_path))


def test_a_stronger_word_fills_an_emptied_map_again(tmp_path: Path) -> None:
    (tmp_path / "autoglm.properties").write_text("search.space={}\n")
    config = load(tmp_path, ONE, "search.space.dropout={choice: [0.1]}")
    assert set(config.settings.search.space) == {"dropout"}


def test_a_default_is_only_looked_at_when_it_is_needed(tmp_path: Path) -> None:
    for unused in ("${nope}", "${file:none}", "${evaluate.nope}", "${data.label}"):
        more = f"search: {{sampler: '${{data.text:{unused}}}'}}\n"
        assert load(tmp_path, more).settings.search.sampler == "body"
    more = "search: {sampler: '${nope:${nope2:${data.label}}}'}\n"
    assert load(tmp_path, more).settings.search.sampler == "topic"
    with pytest.raises(ConfigError, match=r"autoglm\.yaml:4: \$\{nope2\} has no value \(asked by"):
        load(tmp_path, "search: {sampler: '${nope:${nope2}}'}\n")


def test_two_dollars_write_a_literal_placeholder(tmp_path: Path) -> None:
    more = "search: {sampler: 'a $${x} ${data.text} ${nope:$${y}}'}\n"
    assert load(tmp_path, more).settings.search.sampler == "a ${x} body ${y}"
    copied = more + "training: {optimizer: '${search.sampler}'}\n"
    assert load(tmp_path, copied).settings.training.optimizer == "a ${x} body ${y}"


def test_placeholders_are_found_in_maps_of_lists_and_name_items_of_lists(tmp_path: Path) -> None:
    more = (
        "search: {space: {lr: {choice: [{a: '${data.text}'}]}}}\n"
        "training: {epochs: '${release.steps[0]}', batch_size: '${data.processors[1]:16}'}\n"
        "release: {steps: [5, 100]}\n"
    )
    found = load(tmp_path, more).settings
    assert found.search.space == {"lr": {"choice": [{"a": "body"}]}}
    assert (found.training.epochs, found.training.batch_size) == (5, 16)


def test_many_placeholders_in_a_row_are_no_nesting(tmp_path: Path) -> None:
    more = f"search: {{sampler: '{'${nope:x}' * 3000}'}}\n"
    assert load(tmp_path, more).settings.search.sampler == "x" * 3000


@dataclass(frozen=True, kw_only=True)
class Look:
    url: str = "u"


@pytest.fixture
def alike() -> Iterator[None]:
    """A section whose name is that of two levels of ours, run together."""
    before = dict(registry._registered)
    registry.register("section", "data_source", Look)
    yield
    registry._registered.clear()
    registry._registered.update(before)


@pytest.mark.usefixtures("alike")
def test_a_dot_parts_levels_also_where_names_are_relaxed(tmp_path: Path) -> None:
    config = load(tmp_path, "data_source: {url: WRONG}\nsearch: {sampler: '${data.source.url}'}\n")
    assert config.settings.search.sampler == "sqlite:///a.db"
    assert provenance.explain(config, "data.source.url")["value"] == "sqlite:///a.db"
    assert provenance.explain(config, "dataSource.URL")["value"] == "WRONG"


def test_map_keys_with_and_without_a_dot_are_two(tmp_path: Path) -> None:
    more = "search: {space: {a.b: {choice: [1]}, ab: {choice: [2]}}}\n"
    config = load(tmp_path, more)
    assert provenance.explain(config, "search.space[a.b].choice")["value"] == [1]
    assert provenance.explain(config, "search.space.ab.choice")["value"] == [2]


def test_a_default_is_shown_also_when_its_key_is_a_secret(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("s3cret")
    config = load(tmp_path, "search: {sampler: '${file:pw}'}\n")
    said = provenance.explain(config, "search.sampler")
    assert (said["value"], said["layers"][0]["value"]) == ("***", "tpe")
