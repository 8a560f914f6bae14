from __future__ import annotations

from typing import Any

import optuna
import pytest

from autoglm import tune
from autoglm.errors import SearchError
from autoglm.loop.run_to_candidate import searchable_keys
from autoglm.search.constraints import read_constraints
from autoglm.search.proposals import MOST_INFEASIBLE, Proposals
from autoglm.search.space import num_points, read_space

KEYS = searchable_keys("package:x")
OWN = {"training.trainable_layers": 2, "model.structure.lora_rank": 0, "training.lr": 2e-4,
       "model.structure.num_layers": 6, "model.structure.hidden_size": 384}  # fmt: skip
LORA, LAYERS = "model.structure.lora_rank", "training.trainable_layers"


def proposals(space: Any, *constraints: str, own: Any = OWN) -> Proposals:
    return Proposals(
        dimensions=read_space(space, KEYS),
        constraints=read_constraints(constraints, KEYS),
        own=own,
    )


def some(made: Proposals, num: int = 60) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(num):
        new = made.next(study)
        if new is None:  # every point was tried
            break
        trial, values = new
        assert made.values(trial.params) == values
        study.tell(trial, 0.0)
        found.append(values)
    return found


@pytest.mark.parametrize(
    ("when", "asked_for"),
    [
        ({"trainable_layers": 0}, {0}),
        ({"trainable_layers": [0, 1]}, {0, 1}),
        ({"trainable_layers": {"above": 1}}, {2, 6}),
        ({"trainable_layers": {"above": 0, "below": 6}}, {1, 2}),
    ],
)
def test_a_dimension_is_asked_only_where_its_condition_holds(
    when: dict[str, Any], asked_for: set[int]
) -> None:
    space = {
        "lora_rank": {"choice": [4, 8, 16], "when": when},
        "trainable_layers": {"choice": [0, 1, 2, 6]},
    }
    made = proposals(space)
    assert [d.key for d in made.dimensions] == [LAYERS, LORA]  # what is asked of comes first
    found = some(made)
    assert {values[LAYERS] for values in found if LORA in values} == asked_for
    assert {values[LAYERS] for values in found if LORA not in values} == {0, 1, 2, 6} - asked_for
    assert num_points(made.dimensions, OWN) == 4 + 2 * len(asked_for)


def test_a_condition_on_what_is_no_dimension_is_refused_with_the_nearest() -> None:
    space = {
        "lora_rank": tune.choice([4, 8]).when({"structure.num_layers": 2}),
        "trainable_layers": tune.choice([0, 1]),
    }
    with pytest.raises(SearchError, match="Did you mean trainable_layers") as caught:
        proposals(space)
    assert (caught.value.code, caught.value.exit_code) == ("search.condition", 2)
    assert "model.structure.num_layers is no dimension" in caught.value.message


def test_a_condition_on_what_was_not_asked_sees_the_projects_own_value() -> None:
    space = {
        "trainable_layers": tune.choice([0, 1]),
        "lora_rank": tune.choice([4, 8]).when(trainable_layers=1),
        "lora_alpha": tune.uniform(8, 32).when(lora_rank={"above": 0}),
    }
    found = some(proposals(space), 20)
    assert {len(values) for values in found} == {1, 3}
    assert sum(values == {LAYERS: 0} for values in found) == 1  # the only one of its kind
    assert all(("model.structure.lora_alpha" in v) == (v[LAYERS] == 1) for v in found)


def test_a_condition_reads_units_as_its_dimension_does() -> None:
    for when in ({"warmup": "5%"}, {"warmup": 0.05}, {"warmup": {"below": "6%"}}):
        space = {"warmup": {"choice": ["5%", "10%"]}, "lr": {"choice": [0.1, 0.2], "when": when}}
        (warmup, lr) = read_space(space, KEYS)
        assert (warmup.choices, num_points([warmup, lr], OWN)) == ((0.05, 0.1), 3)
    with pytest.raises(SearchError, match="would never be asked"):
        read_space({**space, "lr": {"choice": [0.1], "when": {"warmup": "often"}}}, KEYS)


def test_true_is_not_one_in_a_condition() -> None:
    space = {
        "gradient_checkpointing": tune.choice([True, False]),
        "lora_rank": tune.choice([4]).when(gradient_checkpointing=True),
    }
    assert num_points(read_space(space, KEYS), OWN) == 2
    with pytest.raises(SearchError, match="never be asked"):
        proposals({**space, "lora_rank": tune.choice([4]).when(gradient_checkpointing=1)})


@pytest.mark.parametrize(
    ("space", "words", "code"),
    [
        (
            {"lora_rank": tune.choice([4]).when(trainable_layers=0),
             "trainable_layers": tune.choice([0]).when(lora_rank=4)},
            "wait for each other", "search.condition",
        ),
        ({"lr": tune.uniform(0.1, 1).when(lr=1)}, "wait for each other", "search.condition"),
        ({"lr": tune.uniform(0.1, 1).when(layer=1)}, "Did you mean", "search.unknown_key"),
        ({"lr": tune.uniform(0.1, 1).when(epochs={"over": 1})}, "no condition", "search.condition"),
        ({"lr": tune.uniform(0.1, 1).when(epochs=[])}, "no condition", "search.condition"),
        ({"lr": {"uniform": [0, 1], "when": "always"}}, "when: {KEY", "search.space"),
        (
            {"lr": tune.uniform(0.1, 1).when(epochs=9), "epochs": tune.randint(1, 4)},
            "never be asked", "search.condition",
        ),
        (
            {"lr": tune.uniform(0.1, 1).when(epochs={"above": 3}), "epochs": tune.randint(1, 4)},
            "never be asked", "search.condition",
        ),
    ],
)  # fmt: skip
def test_a_condition_that_cannot_be_meant_is_refused(
    space: dict[str, Any], words: str, code: str
) -> None:
    with pytest.raises(SearchError, match=words) as caught:
        proposals(space)
    assert (caught.value.code, caught.value.exit_code) == (code, 2)


SHAPES = {"n_layers": tune.randint(1, 13), "hidden_size": tune.qrandint(64, 768, 64)}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("num_layers * hidden_size <= 1024", lambda n, h: n * h <= 1024),
        ("not n_layers > 3 and hidden_size // 2 != 64", lambda n, h: n <= 3 and h // 2 != 64),
        ("2 < num_layers <= 4 or hidden_size % 128 == 0", lambda n, h: 2 < n <= 4 or h % 128 == 0),
        ("-hidden_size + 64 * structure.num_layers >= -64 / 2", lambda n, h: 64 * n - h >= -32),
        ("num_layers / (hidden_size - 64) < 1", lambda n, h: h != 64 and n / (h - 64) < 1),
    ],
)
def test_only_what_fulfils_the_constraints_is_proposed(text: str, holds: Any) -> None:
    made = proposals(SHAPES, text)
    found = [tuple(values.values()) for values in some(made)]
    assert all(holds(n, h) for h, n in found)
    points = [(n, h) for n in range(1, 13) for h in range(64, 769, 64)]
    assert made.num_points() == sum(holds(n, h) for n, h in points)
    assert 0 < made.num_points() < len(points)


def test_a_refused_point_is_told_to_the_sampler_as_infeasible_and_is_no_trial() -> None:
    made = proposals({"lr": tune.uniform(0.1, 0.9)}, "lr <= 0.2")
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5))
    for _ in range(10):
        trial, values = made.next(study)
        assert values["training.lr"] <= 0.2
        study.tell(trial, values["training.lr"])
    refused = [t for t in study.trials if t.state.name == "PRUNED"]
    assert refused
    for trial in refused:
        assert trial.constraints == {"lr <= 0.2": pytest.approx(trial.params["training.lr"] - 0.2)}
    # The sampler learnt the way: alone by chance there are seven refused ones for each that holds.
    assert len(refused) < 35
    assert all(t.state.name != "RUNNING" for t in study.trials)


def test_a_constraint_that_nothing_fulfils_ends_the_study_by_its_name() -> None:
    made = proposals({"lr": tune.uniform(0.1, 0.9)}, "lr < 9", "lr * 2 > epochs + 5", own={
        **OWN, "training.epochs": 3,
    })  # fmt: skip
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with pytest.raises(
        SearchError, match=r"'lr \* 2 > epochs \+ 5'.*training.epochs = 3"
    ) as caught:
        made.next(study)
    assert (caught.value.code, caught.value.exit_code) == ("search.infeasible", 2)
    assert len(study.trials) == MOST_INFEASIBLE
    finite = proposals({"n_layers": tune.randint(1, 4)}, "num_layers > 3")
    with pytest.raises(SearchError, match="num_layers > 3"):  # known without a single proposal
        finite.num_points()


def test_a_constraint_that_cannot_be_computed_is_known_without_a_single_proposal() -> None:
    for space in ({"lr": tune.uniform(0.1, 0.9)}, {"n_layers": tune.randint(1, 4)}):
        with pytest.raises(SearchError, match="cannot be computed with lr = ") as caught:
            proposals(space, "lr < 'a'").num_points()
        assert caught.value.code == "search.constraint"


@pytest.mark.parametrize(
    ("text", "words", "code"),
    [
        ("num_layers <= ", "cannot be read", "search.constraint"),
        ("num_layers ** 2 <= 4", "not of its language", "search.constraint"),
        ("__import__('os').system('x') == 0", "not of its language", "search.constraint"),
        ("(lambda: lr)() > 0", "not of its language", "search.constraint"),
        ("[lr][0] > 0", "not of its language", "search.constraint"),
        ("num_layers + 1", "compares nothing", "search.constraint"),
        ("1 < 2", "names no dimension", "search.constraint"),
        ("num_layer > 2", "Did you mean num_layers", "search.unknown_key"),
        ("lr.__class__ == 1", "nobody reads", "search.unknown_key"),
        ("lr < 1" + " and lr < 1" * 100, "more than 500", "search.constraint"),
    ],
)
def test_a_constraint_that_cannot_be_meant_is_refused(text: str, words: str, code: str) -> None:
    with pytest.raises(SearchError, match=words) as caught:
        read_constraints([text], KEYS)
    assert (caught.value.code, caught.value.exit_code) == (code, 2)


def test_texts_are_compared_and_never_reckoned_with() -> None:
    (same,) = read_constraints(["optimizer == 'muon' or lr < 0.01"], KEYS)
    assert same.violation({"training.optimizer": "muon", "training.lr": 1.0}) == 0
    assert same.violation({"training.optimizer": "adamw", "training.lr": 1.0}) == 1
    (wrong,) = read_constraints(["optimizer * 2 > lr"], KEYS)
    with pytest.raises(SearchError, match="'adamw' is no number"):
        wrong.violation({"training.optimizer": "adamw", "training.lr": 1.0})


def test_a_finite_space_is_tried_out_whole_whatever_the_sampler_prefers() -> None:
    class Stubborn(optuna.samplers.RandomSampler):
        def sample_independent(self, *_arguments: Any) -> Any:
            return 3

    made = proposals({"n_layers": tune.randint(1, 7)}, "num_layers != 5")
    study = optuna.create_study(sampler=Stubborn())
    found = []
    for _ in range(made.num_points() or 0):
        trial, values = made.next(study)
        study.tell(trial, 0.0)
        found.append(values["model.structure.num_layers"])
    assert found == [3, 1, 2, 4, 6]
