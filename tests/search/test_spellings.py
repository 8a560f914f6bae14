"""One space, however it is written: YAML, Python, Ray Tune's objects, Optuna's distributions."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from autoglm import tune
from autoglm.config.config_loader import bind
from autoglm.config.layers import command_line_layer, file_layer
from autoglm.config.schema import leaf_keys
from autoglm.contracts.record import canonical, from_json
from autoglm.errors import SearchError
from autoglm.loop.run_to_candidate import OF_A_STUDY, SEARCHABLE, searchable_keys
from autoglm.plugins import registry
from autoglm.search.config import SearchConfig
from autoglm.search.proposals import Proposals
from autoglm.search.space import Dimension, num_points, read_space, resolve, space_said
from autoglm.settings import Settings, snapshot


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)


PYTHON = {
    "n_layers": tune.choice([2, 3, 4]),
    "lr": tune.loguniform(1e-4, 1e-2),
    "dropout": tune.uniform(0.1, 0.5),
}
IN_BRACES = (
    "space: {n_layers: choice([2,3,4]), lr: loguniform(1e-4,1e-2), dropout: uniform(0.1,0.5)}"
)
IN_LINES = """
space:
  n_layers: choice([2, 3, 4])
  lr: loguniform(1e-4, 1e-2)
  dropout: tune.uniform(0.1, upper=0.5)
"""
AS_MAPS = """
space:
  num_layers: {choice: [2, 3, 4]}
  training: {lr: {loguniform: [1e-4, 1e-2]}, dropout: {uniform: [0.1, 0.5]}}
"""
NEEDED = [
    "project=p", "model.backbone=x", "data.text=t", "data.label=l", "data.source.url=sqlite:///x",
    "data.source.table=t", "data.source.key=id",
]  # fmt: skip


# Ray Tune 2.60's space objects, attribute by attribute (ray/tune/search/sample.py).
class _Uniform:
    pass


class _LogUniform:
    base = 10


class _Normal:
    mean, sd = 0.0, 1.0


class Quantized:
    def __init__(self, sampler: Any, q: float) -> None:
        self.sampler, self.q = sampler, q


class Float:
    sampler: Any = None

    def __init__(self, lower: float | None, upper: float | None, sampler: Any = None) -> None:
        self.lower = float("-inf") if lower is None else lower
        self.upper = float("inf") if upper is None else upper
        self.sampler = sampler


class Integer(Float):
    pass


class Categorical:
    def __init__(self, categories: list[Any]) -> None:
        self.categories, self.sampler = categories, _Uniform()


RAY = {
    "n_layers": Categorical([2, 3, 4]),
    "lr": Float(1e-4, 1e-2, _LogUniform()),
    "dropout": Float(0.1, 0.5, _Uniform()),
}
OPTUNA = {
    "n_layers": optuna.distributions.CategoricalDistribution([2, 3, 4]),
    "lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
    "dropout": optuna.distributions.FloatDistribution(0.1, 0.5),
}


def read(space: Any) -> tuple[Dimension, ...]:
    return read_space(space, searchable_keys("package:x"))


def only(space: Any) -> Dimension:
    (dimension,) = read_space(space, ["training.lr"])
    return dimension


def of_yaml(text: str, folder: Path) -> Any:
    file = folder / "autoglm.yaml"
    file.write_text("search:\n" + "\n".join(f"  {line}" for line in text.splitlines()) + "\n")
    return bind(Settings, [file_layer(file), command_line_layer(NEEDED)]).settings.search.space


@pytest.mark.parametrize("text", [IN_BRACES, IN_LINES, AS_MAPS])
def test_a_space_is_the_same_in_yaml_and_in_python(text: str, tmp_path: Path) -> None:
    assert read(of_yaml(text, tmp_path)) == read(PYTHON)
    assert [d.key for d in read(PYTHON)] == [
        "model.structure.num_layers", "training.dropout", "training.lr",
    ]  # fmt: skip


@pytest.mark.parametrize("space", [RAY, OPTUNA, {**RAY, "n_layers": {"grid_search": [2, 3, 4]}}])
def test_objects_of_ray_and_optuna_are_taken_as_they_are(space: dict[str, Any]) -> None:
    assert read(space) == read(PYTHON)


def test_the_command_line_may_say_a_call() -> None:
    said = [*NEEDED, "search.space.lr=loguniform(1e-4, 1e-2)", "search.space.epochs=randint(1, 4)"]
    said += ["search.space.batch_size=steps(lower=8, upper=30, step=8)"]
    space = bind(Settings, [command_line_layer(said)]).settings.search.space
    found = {d.key: d for d in read(space)}
    assert found["training.lr"].low == 1e-4
    assert found["training.epochs"].points() == (1, 2, 3)
    assert found["training.batch_size"].points() == (8, 16, 24)
    assert "training.dropout" in found  # of the default space


def test_a_frozen_space_is_plain_json_and_reads_alike() -> None:
    conditional = {
        "trainable_layers": tune.choice([0, 1]),
        "lora_rank": tune.choice([4]).when(trainable_layers=0),
    }
    for space in (PYTHON, RAY, OPTUNA, conditional):
        frozen = json.loads(canonical(space_said(space)))
        assert read(frozen) == read(space)


def test_real_objects_of_ray_tune_are_taken_as_they_are() -> None:
    ray = pytest.importorskip("ray.tune", reason="ray[tune] is not installed")
    space = {
        "n_layers": ray.choice([2, 3, 4]),
        "lr": ray.loguniform(1e-4, 1e-2),
        "dropout": ray.uniform(0.1, 0.5),
    }
    assert read(space) == read(PYTHON)
    pairs = [
        (ray.randint(1, 4), tune.randint(1, 4)),
        (ray.lograndint(1, 9), tune.lograndint(1, 9)),
        (ray.qrandint(1, 9, 2), tune.qrandint(1, 9, 2)),
        (ray.quniform(0.1, 0.5, 0.2), tune.quniform(0.1, 0.5, 0.2)),
        (ray.qloguniform(0.1, 0.5, 0.1), tune.qloguniform(0.1, 0.5, 0.1)),
        (ray.grid_search([1, 2]), tune.grid_search([1, 2])),
    ]
    for theirs, ours in pairs:
        assert only({"lr": theirs}) == only({"lr": ours})


@pytest.mark.parametrize(
    ("said", "points"),
    [
        (tune.randint(1, 4), (1, 2, 3)),
        (Integer(1, 4), (1, 2, 3)),
        (tune.lograndint(1, 4), (1, 2, 3)),
        (tune.qrandint(1, 9, 4), (4, 8)),
        (Integer(1, 9, Quantized(_Uniform(), 4)), (4, 8)),
        (tune.qlograndint(3, 9, 3), (3, 6, 9)),
        (Integer(3, 9, Quantized(_LogUniform(), 3)), (3, 6, 9)),
        (tune.quniform(0.1, 0.5, 0.2), (0.2, 0.4)),
        (tune.quniform(0.1, 0.3, 0.1), (0.1, 0.2, 0.3)),
        (Float(0.1, 0.5, Quantized(_Uniform(), 0.2)), (0.2, 0.4)),
        (tune.qloguniform(0.1, 0.45, 0.1), (0.1, 0.2, 0.3, 0.4)),
        (optuna.distributions.FloatDistribution(0.1, 0.5, step=0.2), (0.1, 0.3, 0.5)),
        (optuna.distributions.IntDistribution(1, 9, step=4), (1, 5, 9)),
        (optuna.distributions.IntDistribution(1, 3), (1, 2, 3)),
        (optuna.distributions.IntDistribution(1, 3, log=True), (1, 2, 3)),
        (tune.choice([[0, 1], {"a": 1}, None, True, 1, 1]), ([0, 1], {"a": 1}, None, True, 1)),
    ],
)
def test_every_point_and_no_other_is_proposed(said: Any, points: tuple[Any, ...]) -> None:
    dimension = only({"lr": said})
    assert dimension.points() == points
    assert num_points([dimension]) == len(points)
    proposals = Proposals(dimensions=(dimension,), constraints=(), own={})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [proposals.ask(study.ask())["training.lr"] for _ in range(120)]
    assert {repr(value) for value in found} == {repr(point) for point in points}
    assert all(dimension.holds(value) for value in found)
    assert all(dimension.point(dimension.told(point)) == point for point in points)


@pytest.mark.parametrize(
    ("said", "words", "code"),
    [
        (tune.uniform(1, 1), "above the lower", "search.bounds"),
        (tune.uniform(2, 1), "lower bound is above", "search.bounds"),
        (tune.uniform(0, float("inf")), "finite", "search.bounds"),
        (tune.loguniform(0, 1), "starts above 0", "search.bounds"),
        (tune.lograndint(0, 4), "starts above 0", "search.bounds"),
        (tune.quniform(0.1, 0.4, 1), "no multiple of 1", "search.bounds"),
        (tune.quniform(0.1, 0.4, 0), "step must be above 0", "search.bounds"),
        (tune.randint(1, 1), "above the lower", "search.bounds"),
        (tune.randint(1, 2.5), "whole numbers", "search.bounds"),  # type: ignore[arg-type]
        (tune.choice([]), "at least one", "search.bounds"),
        (Float(0, None, _Normal()), "sampled by _Normal", "search.space"),
        (Float(None, 1), "no bounds to stay in", "search.space"),
        ("fast", "no dimension", "search.space"),
        ("loguniform(1e-4", "no dimension", "search.space"),
        ("__import__('os').getcwd()", "unknown kind", "search.space"),
        ("loguniform(1e-4, open('x'))", "no dimension", "search.space"),
        ("logunifrom(1, 2)", "Did you mean loguniform", "search.space"),
        ("steps(1, 2)", "missing 1 required .*'step'", "search.space"),
        ("loguniform(1)", "missing 1 required", "search.space"),
        ("(" * 5000, "no dimension", "search.space"),
        ({"choice": [1], "uniform": [0, 1]}, "one kind must stand", "search.space"),
        ({"when": {"lr": 1}}, "one kind must stand", "search.space"),
        (object(), "no dimension", "search.space"),
    ],
)
def test_what_cannot_be_meant_is_refused_as_a_bad_call(said: Any, words: str, code: str) -> None:
    with pytest.raises(SearchError, match=words) as caught:
        only({"lr": said})
    assert (caught.value.code, caught.value.exit_code) == (code, 2)


@pytest.mark.parametrize(
    ("space", "words", "code"),
    [
        ({"dropout": tune.uniform(0.0, 1.5)}, "less than 1", "search.value"),
        ({"epochs": tune.uniform(1, 4)}, "randint", "search.value"),
        ({"epochs": tune.choice([1, 0])}, "greater than or equal to 1", "search.value"),
        ({"epochs": tune.randint(0, 4)}, "greater than or equal to 1", "search.value"),
        ({"pooling": tune.choice(["mean", "median"])}, "median", "search.value"),
        ({"pooling": tune.uniform(0, 1)}, "refuses", "search.value"),
        ({"optimizer": tune.randint(0, 2)}, "refuses", "search.value"),
        ({"gradient_checkpointing": tune.randint(0, 2)}, "true or false", "search.value"),
        ({"lr": tune.choice(["fast"])}, "write a number", "search.value"),
        ({"n_layer": tune.choice([1])}, "Did you mean", "search.unknown_key"),
        ({}, "empty", "search.empty"),
    ],
)
def test_what_the_configuration_would_refuse_is_refused_at_once(
    space: dict[str, Any], words: str, code: str
) -> None:
    with pytest.raises(SearchError, match=words) as caught:
        read(space)
    assert (caught.value.code, caught.value.exit_code) == (code, 2)


def test_whole_steps_of_a_whole_number_are_whole_numbers() -> None:
    (dimension,) = read({"epochs": tune.quniform(1, 4, 1)})
    assert dimension.points() == (1, 2, 3, 4)
    assert all(isinstance(point, int) for point in dimension.points() or ())


def test_choices_are_values_as_a_run_keeps_them() -> None:
    said = {"warmup": ["5%", 0.1], "checkpoint_every": ["1min"], "layers": [[0, 1], [0, 2]]}
    found = {d.key: d.choices for d in read({k: tune.choice(v) for k, v in said.items()})}
    assert found == {
        "model.structure.layers": ([0, 1], [0, 2]),
        "training.checkpoint_every": (60.0,),
        "training.warmup": (0.05, 0.1),
    }


# What a text or a map of the product may hold; numbers, words and lists are found by trying.
TEXTS = {
    "model.backbone": ["conv", "recurrent"],
    "model.attention": ["sdpa", {"name": "top_k", "k": 64}],
    "training.algorithms": [[], ["mine"]],
    "training.callbacks": [["mine"]],
    "model.structure.layers": [[], [0, 1]],
}


def dimension_of(key: str, annotation: Any) -> Any:
    """A dimension that somebody could write for the key, from what its type says."""
    allowed = [v for a in (annotation, *getattr(annotation, "__args__", ()))
               for v in getattr(a, "__args__", ()) if isinstance(v, str)]  # fmt: skip
    plain = getattr(annotation, "__origin__", annotation)
    if key in TEXTS:
        return tune.choice(TEXTS[key])
    if plain is bool:
        return tune.choice([True, False])
    if plain is int:
        return tune.randint(1, 4)
    if plain is float:
        return tune.uniform(0.1, 0.5)
    return tune.choice(allowed or ["adamw"] if plain is str or allowed else ["30s", "1min"])


def tree_with(values: Mapping[str, Any]) -> dict[str, Any]:
    tree = copy.deepcopy(snapshot(bind(Settings, [command_line_layer(NEEDED)]).settings))
    for key, value in values.items():
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[last] = value
    return tree


BACKBONES = ("package:x", "conv", "recurrent")


def test_no_key_of_model_and_training_is_left_out_of_every_space() -> None:
    wanted = {key for key in leaf_keys(Settings) if key.split(".")[0] in SEARCHABLE} - OF_A_STUDY
    assert {key for backbone in BACKBONES for key in searchable_keys(backbone)} == wanted


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_key_of_model_and_training_can_be_a_dimension(backbone: str) -> None:
    keys = searchable_keys(backbone)
    assert len(keys) > 30
    dimensions = read_space(
        {key: dimension_of(key, annotation) for key, annotation in keys.items()}, keys
    )
    assert {d.key for d in dimensions} == set(keys)
    proposals = Proposals(dimensions=dimensions, constraints=(), own={})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(5):
        values = proposals.ask(study.ask())
        assert set(values) == set(keys)
        tree = tree_with(values)
        settings = from_json(Settings, tree)  # the schema takes it as a run's frozen tree
        assert snapshot(settings) == tree


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_last_part_of_every_key_names_it(backbone: str) -> None:
    keys = searchable_keys(backbone)
    for key in keys:
        assert resolve(key, keys) == resolve(key.rpartition(".")[2], keys) == key
    (num_layers,) = [key for key in keys if key.endswith("num_layers")]
    assert resolve("n_layers", keys) == num_layers
    assert resolve(num_layers.replace("num_", "n_"), keys) == num_layers


def test_numbers_of_numpy_are_plain_numbers() -> None:
    space = {
        "epochs": tune.randint(np.int64(1), np.int64(4)).when(num_layers=np.int64(2)),
        "num_layers": tune.choice([np.int64(2), np.int64(3)]),
        "lr": tune.choice(np.logspace(-4, -2, 3)),
        "dropout": optuna.distributions.FloatDistribution(np.float32(0.0), np.float64(0.5)),
        "batch_size": {"choice": np.array([8, 16])},
        "gradient_checkpointing": tune.choice([np.True_]),
    }
    plain = space_said(space)
    assert json.loads(json.dumps(plain)) == plain  # numpy's own would not be kept
    read = {d.key.rpartition(".")[2]: d for d in read_space(space, searchable_keys("package:x"))}
    assert read["lr"].choices == (1e-4, 1e-3, 1e-2)
    assert read["gradient_checkpointing"].choices == (True,)
    assert read["epochs"].points() == (1, 2, 3)
    assert {type(each) for d in read.values() for each in d.choices} == {bool, int, float}


def test_a_part_of_kind_space_is_named_in_the_configuration(tmp_path: Path) -> None:
    registry.register("space", "as-map", PYTHON, replace=True)
    registry.register("space", "as-function", lambda: PYTHON, replace=True)
    for name in ("as-map", "as-function"):
        said = of_yaml(f"space: {name}", tmp_path)
        assert said == name
        assert read(said) == read(PYTHON)
        assert space_said(said) == space_said(PYTHON)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (lambda: 1 / 0, "gave no space: ZeroDivisionError"),
        (lambda: sys.exit(2), "gave no space: SystemExit"),
        (lambda: [1], "no map of dimensions"),
    ],
)
def test_a_function_that_gives_no_space_is_refused(part: Any, words: str) -> None:
    registry.register("space", "broken", part, replace=True)
    with pytest.raises(SearchError, match=words) as caught:
        read("broken")
    assert (caught.value.code, caught.value.exit_code) == ("search.space", 2)


def test_a_budget_of_nothing_is_refused() -> None:
    for said, shown in (
        ("search.budget=0ms", "budget = 0s: "),
        ("search.trials=0", "trials = 0: "),
    ):
        with pytest.raises(Exception, match=f"{shown}Input should be greater than") as caught:
            bind(Settings, [command_line_layer([*NEEDED, said])])
        assert getattr(caught.value, "exit_code", 0) == 2


def test_naming_a_space_loads_nothing_heavy() -> None:
    code = (
        "import sys, autoglm; autoglm.tune.choice([1]); from autoglm.tune import uniform;"
        "print(sorted({'optuna', 'ray', 'torch', 'pydantic_core'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_default_space_is_a_space() -> None:
    assert {f.name for f in dataclasses.fields(SearchConfig)} >= {"space", "constraints"}
    assert len(read(SearchConfig().space)) == 3
