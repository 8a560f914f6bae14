"""Metrics are scikit-learn's, of rows in any task's form, and are resampled with the rows."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.preprocessing import MultiLabelBinarizer

from autoglm.contracts.task import METRICS_OF
from autoglm.evaluation.evaluator import MetricEvaluator, find_evaluator, paired
from autoglm.evaluation.floors import linear_predictions, majority_predictions
from autoglm.evaluation.metrics import OF_LABEL, OF_LABELS, OF_NUMBER, OF_TAGS, entities

DRAW = random.Random(4)
LABELS = [DRAW.choice("abc") for _ in range(80)], [DRAW.choice("abcd") for _ in range(80)]
SETS = tuple([frozenset(DRAW.sample("abcd", DRAW.randint(0, 3))) for _ in range(60)] for _ in "tp")
NUMBERS = tuple([1e6 + DRAW.gauss(0, 3) for _ in range(50)] for _ in "tp")
TAGS = tuple(
    [tuple(DRAW.choice(["O", "B-X", "I-X"]) for _ in range(6)) for _ in range(40)] for _ in "tp"
)


def test_values_are_those_of_scikit_learn() -> None:
    truth, said = LABELS
    assert OF_LABEL["accuracy"](truth, said) == pytest.approx(sk.accuracy_score(truth, said))
    assert OF_LABEL["macro_f1"](truth, said) == pytest.approx(
        sk.f1_score(truth, said, average="macro")
    )
    names = MultiLabelBinarizer().fit([*SETS[0], *SETS[1]])
    table, other = names.transform(SETS[0]), names.transform(SETS[1])
    for average in ("micro", "macro"):
        wanted = sk.f1_score(table, other, average=average, zero_division=0)
        assert OF_LABELS[f"{average}_f1"](*SETS) == pytest.approx(wanted)
    assert OF_LABELS["accuracy"](*SETS) == pytest.approx(sk.accuracy_score(table, other))
    assert OF_NUMBER["r2"](*NUMBERS) == pytest.approx(sk.r2_score(*NUMBERS), rel=1e-9)
    mae = sk.mean_absolute_error(*NUMBERS)
    assert OF_NUMBER["negative_mae"](*NUMBERS) == pytest.approx(-mae)
    assert OF_NUMBER["negative_rmse"](*NUMBERS) == pytest.approx(
        -(sk.mean_squared_error(*NUMBERS) ** 0.5)
    )


def test_each_form_has_the_metrics_that_its_tasks_promise() -> None:
    tables = {"label": OF_LABEL, "labels": OF_LABELS, "tags": OF_TAGS, "number": OF_NUMBER}
    assert {form: sorted(table) for form, table in tables.items()} == {
        form: sorted(METRICS_OF[form]) for form in tables
    }
    for names in METRICS_OF.values():
        for name in names:
            assert find_evaluator(name).name == name


def test_a_metric_that_says_nothing_of_such_rows_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"entity_f1 is no metric of such rows.*macro_f1"):
        find_evaluator("entity_f1").evaluate(*LABELS)


@pytest.mark.parametrize(
    ("name", "rows"),
    [("macro_f1", LABELS), ("micro_f1", SETS), ("r2", NUMBERS), ("entity_f1", TAGS)],
)
def test_the_interval_holds_the_value_and_a_model_against_itself_differs_by_nothing(
    name: str, rows: tuple[list[object], list[object]]
) -> None:
    truth, said = rows
    evaluator = find_evaluator(name)
    score = evaluator.evaluate(truth, said)
    assert score.value is not None
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    same = paired(evaluator, truth, said, said)
    assert (same.value, same.low, same.high, same.wins, same.losses) == (0, 0, 0, 0, 0)
    better = paired(evaluator, truth, truth, said)
    assert better.low > 0
    assert better.wins > 0 == better.losses


def test_what_is_undefined_is_none_never_zero() -> None:
    assert OF_TAGS["entity_f1"]([("O", "O")], [("O", "O")]) is None
    assert OF_NUMBER["r2"]([3.0, 3.0], [1.0, 2.0]) is None
    assert find_evaluator("accuracy").evaluate([], []).value is None


def test_floors_answer_in_the_form_of_their_task() -> None:
    from autoglm.contracts.task import TASKS

    texts = [f"{'good' if i % 2 else 'bad'} film {i % 5}" for i in range(40)]
    number, multi = TASKS["regression"], TASKS["multi-label-classification"]
    stars = [float(4 * (i % 2)) for i in range(40)]
    assert majority_predictions(stars, texts[:2], number) == [2.0, 2.0]
    assert np.allclose(
        linear_predictions(texts, stars, ["good film", "bad film"], number), [4, 0], atol=1
    )
    sets = [frozenset({"pos", "short"}) if i % 2 else frozenset({"short"}) for i in range(40)]
    said = linear_predictions(texts, sets, ["good film", "bad film"], multi)
    assert said == [{"pos", "short"}, {"short"}]
    tagging = TASKS["token-classification"]
    rows, tags = [("in", "Rome"), ("in", "may")], [("O", "B-LOC"), ("O", "O")]
    assert majority_predictions(tags, [("a", "b")], tagging) == [("O", "O")]
    assert linear_predictions(rows, tags, [("Rome", "in", "x")], tagging) == [("B-LOC", "O", "O")]


def test_entities_of_one_type_may_leave_it_out() -> None:
    assert entities(["O", "B", "I", "B", "O", "I", "B-x", "I"]) == {
        (1, 2, ""), (3, 3, ""), (5, 5, ""), (6, 6, "x"), (7, 7, ""),
    }  # fmt: skip


def test_r2_knows_no_unit_and_has_no_value_for_equal_numbers() -> None:
    numbers, near = [1.0, 2.0, 3.0], [1.0, 2.0, 3.5]
    wanted = OF_NUMBER["r2"](numbers, near)
    small = OF_NUMBER["r2"]([n * 1e-9 for n in numbers], [n * 1e-9 for n in near])
    assert small == pytest.approx(wanted)
    assert OF_NUMBER["r2"]([0.1] * 3, [0.1, 0.2, 0.3]) is None


@pytest.mark.parametrize("name", ["accuracy", "minority_recall"])
def test_rows_that_are_all_right_are_no_certainty(name: str) -> None:
    """Drawn again they are all right each time; the interval is Wilson's then."""
    truth = ["a"] * 40 + ["b"] * 20
    rows = 20 if name == "minority_recall" else 60
    perfect = MetricEvaluator(name).evaluate(truth, truth)
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(rows / (rows + 1.959964**2))
    assert 1 - 4 / rows < (perfect.low or 0) < 1 - 3 / rows  # about what the rule of three says
    wrong = MetricEvaluator(name).evaluate(truth, ["c"] * 60)
    assert (wrong.value, wrong.low) == (0.0, 0.0)
    assert wrong.high == pytest.approx(1 - (perfect.low or 0))
    labels = [frozenset({label}) for label in truth]
    assert MetricEvaluator("accuracy").evaluate(labels, labels).low == pytest.approx(60 / 63.8415)
    # No share of rows: resampling alone, which says nothing of rows that are all right.
    assert MetricEvaluator("macro_f1").evaluate(truth, truth).low == 1.0
