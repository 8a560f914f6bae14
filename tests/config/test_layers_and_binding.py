"""Layers, names, units, placeholders, secrets: one rule per test, every format."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from autoglm.config import provenance
from autoglm.config.config_loader import Config, bind
from autoglm.config.layers import (
    Layer,
    command_line_layer,
    environment_layer,
    file_layer,
    tree_layer,
)
from autoglm.config.paths import format_path, parse_path
from autoglm.config.properties_reader import read_properties
from autoglm.config.schema import Bytes, Key, Secret, Share, fields_of, live
from autoglm.config.yaml_reader import read_yaml
from autoglm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    url: Annotated[str, Key("Where.")]
    pool_size: Annotated[int, Key("Connections.")] = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class App:
    data_source: Annotated[DataSource, Key("The source.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Root:
    app: Annotated[App, Key("All.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wide:
    labels: Annotated[Mapping[str, Any], Key("Free.")] = field(default_factory=dict)
    space: Annotated[Mapping[str, Any], live("Whole entries.", whole_below=1)] = field(
        default_factory=dict
    )
    urls: Annotated[tuple[str, ...], Key("A list.")] = ()
    steps: Annotated[tuple[int, ...], Key("Numbers.")] = (1, 2)
    wait: Annotated[timedelta, Key("Time.")] = timedelta(seconds=1)
    memory: Annotated[Bytes, Key("Size.")] = 0
    part: Annotated[Share, Key("Share.")] = 0.0
    token: Annotated[Secret, Key("Secret.")] = ""
    password: Annotated[SecretStr, Key("Secret too.")] = SecretStr("")
    name: Annotated[str, Key("Text.")] = "n"
    is_on: Annotated[bool, Key("Flag.")] = False


def yaml_layer(text: str, name: str = "a.yaml") -> Layer:
    return Layer(name, read_yaml(text, name=name), name)


def bound(*layers: Layer) -> Wide:
    return bind(Wide, layers).settings


@pytest.mark.parametrize(
    ("source", "layer"),
    [
        ("yaml", yaml_layer("app: {data-source: {url: 'x://y', pool-size: 7}}")),
        (
            "properties",
            Layer(
                "p",
                read_properties("app.dataSource.url = x://y\napp.data_source.poolSize=7", name="p"),
                "p",
            ),
        ),
        (
            "environment",
            environment_layer(
                {"AUTOGLM_APP_DATASOURCE_URL": "x://y", "AUTOGLM_APP_DATA_SOURCE_POOL_SIZE": "7"}
            ),
        ),
        (
            "remote",
            tree_layer(
                "r", {"app.data-source.url": "x://y", "app": {"data-source": {"pool-size": "7"}}},
                place="r",
            ),
        ),
        (
            "command line",
            command_line_layer(["App.DataSource.URL=x://y", "app.data-source.pool-size=7"]),
        ),
    ],
)  # fmt: skip
def test_a_section_of_two_fields_is_bound_from_every_place(source: str, layer: Layer) -> None:
    assert bind(Root, [layer]).settings.app.data_source == DataSource(url="x://y", pool_size=7)


def test_maps_merge_deeply_lists_are_replaced() -> None:
    found = bound(
        yaml_layer("labels: {a: {x: 1, y: 2}, b: 3}\nsteps: [1, 2, 3]"),
        yaml_layer("labels: {a: {y: 5}, c: 4}\nsteps: [9]"),
    )
    assert found.labels == {"a": {"x": 1, "y": 5}, "b": 3, "c": 4}
    assert found.steps == (9,)


def test_an_entry_that_is_one_thing_is_replaced_whole_and_null_takes_it_out() -> None:
    low = yaml_layer(
        "space: {lr: {uniform: [0, 1]}, epochs: {choice: [1, 2]}, dropout: {choice: [0]}}"
    )
    high = yaml_layer("space: {lr: {loguniform: [1, 2]}, dropout: null}")
    found = bound(low, high)
    assert found.space == {"lr": {"loguniform": [1, 2]}, "epochs": {"choice": [1, 2]}}


def test_map_keys_with_dots_stand_in_brackets() -> None:
    layer = Layer("p", read_properties("labels[a.b].c=1\nlabels.d=2", name="p"), "p")
    assert bound(layer).labels == {"a.b": {"c": 1}, "d": 2}
    config = bind(Wide, [layer])
    assert provenance.explain(config, "labels[a.b].c")["value"] == 1


@pytest.mark.parametrize(
    "layer",
    [
        command_line_layer(["urls=a,b", "steps=[5, 6]"]),
        command_line_layer(["urls[0]=a", "urls[1]=b", "steps[0]=5", "steps[1]=6"]),
        environment_layer({"AUTOGLM_URLS": "a, b", "AUTOGLM_STEPS": "5,6"}),
        environment_layer(
            {
                "AUTOGLM_URLS_0": "a",
                "AUTOGLM_URLS_1_": "b",
                "AUTOGLM_STEPS_0": "5",
                "AUTOGLM_STEPS_1": "6",
            }
        ),
    ],
)
def test_lists_are_read_by_index_or_comma(layer: Layer) -> None:
    found = bound(layer)
    assert (found.urls, found.steps) == (("a", "b"), (5, 6))


def test_a_gap_in_a_list_is_named() -> None:
    with pytest.raises(ConfigError, match=r"urls\[1\] is missing"):
        bound(command_line_layer(["urls[0]=a", "urls[2]=c"]))


def test_texts_from_places_without_types_become_what_the_field_is() -> None:
    layer = environment_layer(
        {
            "AUTOGLM_WAIT": "200ms", "AUTOGLM_MEMORY": "4GiB", "AUTOGLM_PART": "5%",
            "AUTOGLM_NAME": "123", "AUTOGLM_IS_ON": "true", "AUTOGLM_LABELS": "{a: 1, b: no}",
        }
    )  # fmt: skip
    found = bound(layer)
    assert (found.wait, found.memory, found.part) == (timedelta(milliseconds=200), 2**32, 0.05)
    assert (found.name, found.is_on, found.labels) == ("123", True, {"a": 1, "b": "no"})


def test_a_name_that_fits_two_keys_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Inner:
        c: int = 0

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Inner2:
        b_c: int = 0

    made = dataclasses.make_dataclass(
        "Two",
        [("a_b", Inner, field(default_factory=Inner)), ("a", Inner2, field(default_factory=Inner2))],
        frozen=True, kw_only=True,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"fits a_b\.c and a\.b_c") as caught:
        bind(made, [environment_layer({"AUTOGLM_A_B_C": "1"})])
    assert caught.value.code == "config.ambiguous"


def test_a_model_with_two_fields_of_one_name_is_refused() -> None:
    made = dataclasses.make_dataclass("Bad", [("data_source", int, 0), ("dataSource", int, 0)])
    with pytest.raises(TypeError, match="one key"):
        fields_of(made)


def test_placeholders_take_any_spelling_and_nest_and_know_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HERE", "env")
    text = """
name: "${urls2:${Is-On}}-${env:HERE}-${env:NOT_HERE:gone}"
wait: "${none:200ms}"
memory: "${Labels.size}"
labels: {size: 4KiB}
"""
    found = bound(yaml_layer(text))
    assert found.name == "False-env-gone"
    assert (found.wait, found.memory) == (timedelta(milliseconds=200), 4096)


def test_a_circle_and_a_missing_name_show_the_chain() -> None:
    with pytest.raises(ConfigError, match="name → labels.a → labels.b → Labels.A") as circle:
        bound(yaml_layer('name: "${labels.a}"\nlabels: {a: "${labels.b}", b: "${Labels.A}"}'))
    assert circle.value.code == "config.cycle"
    with pytest.raises(ConfigError, match=r"asked by name → labels\.a"):
        bound(yaml_layer('name: "${labels.a}"\nlabels: {a: "${nowhere}"}'))


def test_secrets_are_masked_wherever_people_look(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("hunter2\n")
    text = 'token: abc\npassword: xyz\nname: "${file:pw}"\nurls: ["db://me:geheim@host/x"]'
    config = bind(Wide, [yaml_layer(text)], base=tmp_path)
    assert config.settings.name == "hunter2"
    assert config.settings.password.get_secret_value() == "xyz"
    shown = json.dumps(provenance.show(config)) + json.dumps(
        [provenance.explain(config, key) for key in ("token", "password", "name", "urls")]
    )
    for secret in ("hunter2", "abc", "xyz", "geheim"):
        assert secret not in shown
    assert "db://me:***@host/x" in shown


def test_a_wrong_secret_is_not_repeated_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("hunter2")
    with pytest.raises(ConfigError) as caught:
        bind(Wide, [yaml_layer('steps: ["${file:pw}"]')], base=tmp_path)
    assert "hunter2" not in str(caught.value)


def test_explain_names_every_layer_and_what_it_said() -> None:
    layers = [
        yaml_layer("name: a", "a.yaml"),
        yaml_layer("wait: 5s", "b.yaml"),
        environment_layer({"AUTOGLM_NAME": "c"}),
        command_line_layer(["NAME=d"]),
    ]
    document = provenance.explain(bind(Wide, layers), "Name")
    said = [(line["layer"], line["value"], line["where"]) for line in document["layers"]]
    assert said == [
        ("defaults", "n", ""),
        ("a.yaml", "a", "a.yaml:1"),
        ("b.yaml", None, ""),
        ("environment", "c", "AUTOGLM_NAME"),
        ("command line", "d", "--set"),
    ]
    assert [line["in_force"] for line in document["layers"]] == [False] * 4 + [True]


def test_properties_are_read_as_java_writes_them(tmp_path: Path) -> None:
    text = (
        "# a comment\n! another\n\n"
        "name = one \\\n    two\n"
        "urls:a,b\n"
        "labels.x\\:y   spaced\\tvalue\n"
        "labels.u=\\u00e4\\uD83D\\uDE00\n"
        "token=\n"
    )
    path = tmp_path / "x.properties"
    path.write_text(text)
    found = bound(file_layer(path))
    assert (found.name, found.urls, found.token) == ("one two", ("a", "b"), "")
    assert found.labels == {"x:y": "spaced\tvalue", "u": "ä😀"}


@pytest.mark.parametrize(
    ("name", "text", "code", "words"),
    [
        ("x.properties", "a=1\na=2\n", "config.duplicate_key", "x.properties:2"),
        ("x.properties", "labels[a=1\n", "config.broken", "x.properties:1"),
        ("x.properties", "name=\\u12\n", "config.broken", "four digits"),
        ("x.properties", "a" * 1_000_001, "config.too_large", "characters"),
        ("x.yaml", "a: " + "b" * 10_000_000, "config.too_large", "characters"),
        ("x.yaml", "name:\n\t- x\n", "config.broken", "x.yaml:2:1"),
        ("x.yaml", "name: [1,\n", "config.broken", "x.yaml:2:1"),
        ("x.yaml", "nmae: x\n", "config.unknown_key", "x.yaml:1"),
        ("x.yaml", "wait: soon\n", "config.wrong_type", "x.yaml:1: wait"),
        ("x.yaml", "steps: [a]\n", "config.wrong_value", "x.yaml:1: steps"),
        ("x.yaml", "part: 130%\n", "config.wrong_type", "between 0 and 1"),
    ],
)  # fmt: skip
def test_a_bad_file_is_a_typed_error_with_its_place(
    tmp_path: Path, name: str, text: str, code: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")) as caught:
        bound(file_layer(tmp_path / name))
    assert caught.value.code == code


# What YAML can hold as it is; the rest must be escaped in any format.
PRINTABLE = st.characters(
    exclude_categories=["Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"], exclude_characters="\ufeff"
)
SCALARS = st.one_of(
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(PRINTABLE, max_size=20),
)
NAMES = st.text("abcdefgh", min_size=1, max_size=6)
TREES = st.dictionaries(
    NAMES, st.one_of(SCALARS, st.dictionaries(NAMES, SCALARS, min_size=1, max_size=3)), max_size=4
)
# A name is a map in all layers or in none: what becomes of a value under a map is another test.
# An empty map is, like null, an order to take something out; orders have tests of their own.
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "m": st.dictionaries(NAMES, SCALARS, min_size=1, max_size=3),
        "n": st.dictionaries(NAMES, SCALARS, min_size=1, max_size=3),
        "s": SCALARS,
        "t": st.lists(SCALARS, max_size=2),
    },
).filter(bool)


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_any_tree_of_scalars_survives_dump_and_load_as_yaml(tree: dict[str, Any]) -> None:
    text = yaml.safe_dump({"labels": tree}, allow_unicode=True)
    # PyYAML writes YAML 1.1: `1e16` or `0o7`-like texts differ; JSON is YAML 1.2 by definition.
    assert bound(yaml_layer(json.dumps({"labels": tree}, ensure_ascii=False))).labels == tree
    assert set(bound(yaml_layer(text)).labels) == set(tree)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.text(st.characters(codec="utf-8"), max_size=20), max_size=5))
def test_any_texts_survive_dump_and_load_as_properties(tree: dict[str, str]) -> None:
    def escaped(text: str) -> str:
        units = text.encode("utf-16-be", "surrogatepass")
        codes = [int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2)]
        return "".join(f"\\u{code:04x}" for code in codes)

    text = "\n".join(f"labels.{key}={escaped(value)}" for key, value in tree.items())
    leaves = {leaf.path[1]: str(leaf.value) for leaf in read_properties(text, name="p")}
    assert leaves == tree


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_any_tree_of_scalars_survives_dump_and_load_in_the_environment(
    tree: dict[str, Any],
) -> None:
    # A name of the environment has no place for a key's own capitals: a map goes in whole.
    text = json.dumps(tree, ensure_ascii=False)
    assert bound(environment_layer({"AUTOGLM_LABELS": text})).labels == tree


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_any_tree_of_scalars_survives_dump_and_load_as_pairs_of_a_centre(
    tree: dict[str, Any],
) -> None:
    def pairs(node: dict[str, Any], path: tuple[str, ...]) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in node.items():
            inner = (*path, key)
            if isinstance(value, dict):
                found |= pairs(value, inner)
            else:
                found[format_path(inner)] = json.dumps(value, ensure_ascii=False)
        return found

    assert bound(tree_layer("etcd", pairs(tree, ("labels",)), place="etcd")).labels == tree


@settings(max_examples=40, deadline=None)
@given(SHAPED, SHAPED, SHAPED)
def test_layering_is_associative(a: Any, b: Any, c: Any) -> None:
    def merged(*trees: Any) -> Any:
        texts = [json.dumps({"labels": tree}, ensure_ascii=False) for tree in trees]
        return bound(*map(yaml_layer, texts)).labels

    assert merged(merged(a, b), c) == merged(a, merged(b, c)) == merged(a, b, c)


def test_of_a_value_and_a_map_under_one_name_the_stronger_layer_decides() -> None:
    value, tree = yaml_layer("labels: {a: 1}"), yaml_layer("labels: {a: {b: 2}}")
    assert bound(value, tree).labels == {"a": {"b": 2}}
    assert bound(tree, value).labels == {"a": 1}


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_mixture_of_spellings_gives_one_tree(rng: random.Random) -> None:
    spellings = {
        "app": ["app", "App", "APP"],
        "source": ["data-source", "data_source", "dataSource", "DATASOURCE", "Data-Source"],
        "size": ["pool-size", "poolSize", "POOL_SIZE", "poolsize"],
    }
    parts = {k: rng.choice(v) for k, v in spellings.items()}
    tree = {
        f"{parts['app']}.{parts['source']}.url": "u",
        parts["app"]: {parts["source"]: {parts["size"]: 3}},
    }
    assert bind(Root, [tree_layer("t", tree, place="t")]).settings == Root(
        app=App(data_source=DataSource(url="u", pool_size=3))
    )


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="[]"), min_size=1).filter(
            lambda t: t.strip() == t
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_path_is_written_so_that_it_is_read_again(parts: list[str]) -> None:
    assert parse_path(format_path(parts)) == tuple(parts)


def test_a_config_says_which_layer_set_what() -> None:
    config: Config[Wide] = bind(Wide, [yaml_layer("name: a")])
    assert config.origin("name").where == "a.yaml:1"
    assert config.origin("wait").layer == "defaults"
