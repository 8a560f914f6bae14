"""Evaluators of the user's own, what they are for, and what is said of those that cannot be meant."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

import autoglm
from autoglm.contracts.evaluation_report import PairedDifference
from autoglm.contracts.task import TASKS
from autoglm.errors import ConfigError, PluginError
from autoglm.evaluation.asking import score_of, scores_of_parts, value_of
from autoglm.evaluation.evaluator import find_evaluator, paired
from autoglm.evaluation.probe import probe
from autoglm.evaluation.resampling import standard_error
from autoglm.evaluation.roles import objective, read_roles
from autoglm.evaluation.slices import read_slices, slices_of
from autoglm.plugins import registry
from autoglm.release.offline_gate import judge_constraints, judge_first, judge_quality

DRAW = random.Random(0)
TRUTH = [DRAW.choice("aaab") + "" for _ in range(120)] + ["c"] * 6
SAID = [t if DRAW.random() < 0.7 else DRAW.choice("abc") for t in TRUTH]
SHARES = [{label: 0.6 if label == said else 0.2 for label in "abc"} for said in SAID]
TABLE = np.array([[row[label] for label in "abc"] for row in SHARES])
NUMBERS = [DRAW.gauss(0, 1) for _ in range(40)]
SETS = tuple([frozenset(DRAW.sample("abcd", 2)) for _ in range(40)] for _ in "tp")


@pytest.fixture(autouse=True)
def _own_parts() -> Iterator[None]:
    with registry.registering_from("test"):
        yield
    with registry.registering_from("test"):
        pass


def test_a_metric_s_function_that_is_no_evaluator_is_refused_by_name() -> None:
    registry.register("evaluator", "bare", mistakes)
    with pytest.raises(PluginError, match="missing 2 required") as caught:
        find_evaluator("bare")
    assert caught.value.code == "plugin.missing_method"
    assert "make_evaluator" in (caught.value.next_step or "")
    registry.register("evaluator", "made", lambda: autoglm.make_evaluator(mistakes))
    assert value_of(find_evaluator("made"), ["a", "b"], ["a", "a"]) == 0.5


def mistakes(truth: list[str], said: list[str]) -> float:
    return sum(t != s for t, s in zip(truth, said, strict=True)) / len(truth)


@pytest.mark.parametrize(
    ("scorer", "said", "wanted"),
    [
        ("balanced_accuracy", SAID, sk.balanced_accuracy_score(TRUTH, SAID)),
        ("neg_log_loss", SHARES, -sk.log_loss(TRUTH, TABLE, labels=list("abc"))),
        (
            "roc_auc_ovr",
            SHARES,
            sk.roc_auc_score(TRUTH, TABLE, multi_class="ovr", labels=list("abc")),
        ),
        (sk.make_scorer(sk.f1_score, average="micro"), SAID, sk.accuracy_score(TRUTH, SAID)),
        (lambda model, x, y: float((model.predict(x) == y).mean()), SAID, 1 - mistakes(TRUTH, SAID)),
    ],
)  # fmt: skip
def test_a_scorer_of_scikit_learn_gives_what_it_gives_there(
    scorer: Any, said: Any, wanted: float
) -> None:
    evaluator = autoglm.make_scorer(scorer)
    assert value_of(evaluator, TRUTH, said) == pytest.approx(wanted)
    score = score_of(evaluator, TRUTH, said)
    assert score.low is not None
    assert score.low < wanted < (score.high or 0)


def test_keywords_numbers_sets_and_names_of_ours_make_scorers_too() -> None:
    f2 = autoglm.make_scorer(sk.fbeta_score, beta=2, average="macro")
    two = [("b" if label == "c" else label) for label in TRUTH]
    assert value_of(f2, two, SAID) == pytest.approx(
        sk.fbeta_score(two, SAID, beta=2, average="macro")
    )
    mae = autoglm.make_scorer("neg_mean_absolute_error")
    assert value_of(mae, NUMBERS, [n + 0.5 for n in NUMBERS]) == pytest.approx(-0.5)
    micro = autoglm.make_scorer("f1_micro")
    assert value_of(micro, *SETS) == pytest.approx(value_of(find_evaluator("micro_f1"), *SETS))
    assert autoglm.make_scorer("macro_f1").name == "macro_f1"
    with pytest.raises(ValueError, match="cannot be called"):
        autoglm.make_scorer(3)
    with pytest.raises(ValueError, match="'no_such_score'"):
        autoglm.make_scorer("no_such_score")


def test_where_smaller_is_better_search_and_gate_see_the_negative() -> None:
    autoglm.register("evaluator", "err", autoglm.make_evaluator(mistakes, greater_is_better=False))
    found = find_evaluator("err")
    assert found.greater_is_better
    score = score_of(found, TRUTH, SAID)
    assert score.value == pytest.approx(-mistakes(TRUTH, SAID))
    assert score.low is not None
    assert score.low < (score.value or 0) < (score.high or 0)
    better = paired(found, TRUTH, TRUTH, SAID)
    assert better is not None
    assert better.low > 0
    assert probe(found, "err", TRUTH).warning == ""


@pytest.mark.parametrize(
    ("gives", "code"),
    [
        (lambda _t, _p: float("nan"), "plugin.evaluator_nan"),
        (lambda _t, _p: float("inf"), "plugin.evaluator_nan"),
        (lambda _t, _p: "0.5", "plugin.evaluator_type"),
        (lambda _t, _p: True, "plugin.evaluator_type"),
        (lambda _t, _p: 1 / 0, "plugin.evaluator_raised"),
        (lambda _t, _p: sys.exit(3), "plugin.evaluator_raised"),
    ],
)
def test_what_gives_no_number_is_told_by_name_place_and_next_step(gives: Any, code: str) -> None:
    autoglm.register("evaluator", "mine", autoglm.make_evaluator(gives))
    with pytest.raises(PluginError, match=r"evaluator:mine .*126 rows|evaluator:mine gave") as told:
        probe(find_evaluator("mine"), "mine", TRUTH)
    assert told.value.code == code
    assert __file__ in told.value.next_step


def test_a_wrong_sign_and_a_winning_constant_are_warned_of_and_a_sound_one_is_not() -> None:
    wrong = probe(autoglm.make_evaluator(mistakes), "mine", TRUTH)
    assert "its sign is wrong" in wrong.warning
    assert "greater_is_better=False" in wrong.warning
    lazy = autoglm.make_evaluator(lambda t, _p: float(len(t)))
    assert "cannot tell them apart" in probe(lazy, "lazy", TRUTH).warning
    recall_of_a = autoglm.make_scorer(sk.recall_score, labels=["a"], average="macro")
    assert "says 'a' of every row" in probe(recall_of_a, "recall_of_a", TRUTH).warning
    for name in ("accuracy", "macro_f1"):
        assert probe(find_evaluator(name), name, TRUTH).warning == ""
    for scorer in ("neg_log_loss", "roc_auc_ovr"):
        assert probe(autoglm.make_scorer(scorer), scorer, TRUTH).warning == ""
    assert probe(find_evaluator("r2"), "r2", NUMBERS).warning == ""
    assert probe(find_evaluator("micro_f1"), "micro_f1", SETS[0]).warning == ""
    tags = [("O", "B-X", "I-X"), ("O", "O")]
    assert probe(find_evaluator("entity_f1"), "entity_f1", tags).warning == ""
    assert "has no value" in probe(find_evaluator("entity_f1"), "entity_f1", [("O",)]).warning


def test_the_minority_is_that_of_all_rows_and_undefined_where_none_of_it_is() -> None:
    recall = find_evaluator("minority_recall")
    rare = [said for true, said in zip(TRUTH, SAID, strict=True) if true == "c"]
    assert recall.evaluate(TRUTH, SAID).value == pytest.approx(rare.count("c") / len(rare))
    only_a = [i for i, label in enumerate(TRUTH) if label == "a"]
    with_c = [*only_a[:3], len(TRUTH) - 1]
    without, some, none = scores_of_parts(recall, TRUTH, SAID, [only_a, with_c, []])
    assert (without.value, without.rows) == (None, len(only_a))
    assert some.value == float(SAID[-1] == "c")
    assert none.value is None


def test_a_part_scored_apart_is_the_part_scored_alone() -> None:
    part = list(range(5, 60, 2))
    for name in ("accuracy", "macro_f1"):
        (apart,) = scores_of_parts(find_evaluator(name), TRUTH, SAID, [part])
        alone = find_evaluator(name).evaluate([TRUTH[i] for i in part], [SAID[i] for i in part])
        assert apart == alone
    (apart,) = scores_of_parts(find_evaluator("r2"), NUMBERS, NUMBERS[::-1], [part[:10]])
    left, right = ([side[i] for i in part[:10]] for side in (NUMBERS, NUMBERS[::-1]))
    assert apart.value == pytest.approx(find_evaluator("r2").evaluate(left, right).value)


def test_an_evaluator_that_breaks_on_a_part_is_undefined_there_only() -> None:
    auc = autoglm.make_scorer("roc_auc")
    two = ["a" if label == "a" else "b" for label in TRUTH]
    shares = [{"a": row["a"], "b": row["b"] + row["c"]} for row in SHARES]
    only_a = [i for i, label in enumerate(two) if label == "a"]
    whole, part = scores_of_parts(auc, two, shares, [range(len(two)), only_a])
    assert whole.value is not None
    assert part.value is None
    brittle = autoglm.make_evaluator(lambda t, _p: {2: 0.5}[len(set(t))])
    assert [s.value for s in scores_of_parts(brittle, two, two, [range(120), only_a])] == [
        0.5,
        None,
    ]


def test_slices_cover_the_rows_and_cut_numbers_where_thirds_lie() -> None:
    texts = ["x" * (1 + i % 9) for i in range(90)]
    form = TASKS["text-classification"]
    (length,) = read_slices([{"by": "length"}], form)
    found = slices_of(length, texts, texts)
    assert [each.name for each in found] == [
        "under 4 characters", "4 up to 7 characters", "7 characters and more",
    ]  # fmt: skip
    assert sorted(i for each in found for i in each.at) == list(range(90))
    (label,) = read_slices([{"by": "label"}], form)
    named = {each.name: len(each.at) for each in slices_of(label, TRUTH, TRUTH)}
    assert named == {label: TRUTH.count(label) for label in "abc"}
    (column,) = read_slices([{"by": "column", "column": "site"}], form)
    sites = [None, *(f"s{i % 30}" for i in range(89))]
    groups = slices_of(column, texts, texts, sites)
    assert len(groups) == 21
    assert groups[-1].name == "(others)"
    assert sum(len(each.at) for each in groups) == 90
    prices: list[float | None] = [None, *(float(i) for i in range(89))]
    cut = slices_of(column, texts, texts, prices)
    assert [each.name for each in cut] == ["under 29", "29 up to 59", "59 and more", "(none)"]
    same = slices_of(length, ["ab"] * 5, ["a"] * 5)
    assert [(each.name, len(each.at)) for each in same] == [("all characters", 5)]


@pytest.mark.parametrize(
    ("entry", "task"),
    [
        ({"by": "colour"}, "text-classification"),
        ({"by": "column"}, "text-classification"),
        ({"by": "length", "column": "x"}, "text-classification"),
        ({"by": "length", "of": 3}, "text-classification"),
        ({"by": "label"}, "regression"),
        ({"by": "length"}, "image-classification"),
    ],
)
def test_a_slice_that_means_nothing_is_refused(entry: dict[str, Any], task: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.slices"):
        read_slices([entry], TASKS[task])


def test_roles_are_read_with_their_units_and_a_missed_bound_is_said_in_words() -> None:
    roles = {
        role.name: role
        for role in read_roles(
            {
                "f2": "objective",
                "accuracy": "report",
                "minority_recall": {"at_least": "60%"},
                "latency_ms": {"at_most": "0.02s"},
                "size_bytes": {"at_least": 10, "at_most": "1MiB"},
            }
        )
    }
    assert roles["minority_recall"].at_least == pytest.approx(0.6)
    assert roles["latency_ms"].at_most == pytest.approx(20)
    assert roles["size_bytes"].at_most == 2**20
    assert roles["minority_recall"].missed(0.5) == "minority_recall 0.5, at least 0.6"
    assert roles["size_bytes"].missed(2**21).endswith("at least 10 and at most 1.04858e+06")
    assert not roles["minority_recall"].missed(0.6)
    assert roles["minority_recall"].is_unknown(None)
    assert not roles["accuracy"].is_unknown(None)
    assert objective("auto", {"f2": "objective"}) == "f2"
    assert objective("macro_f1", {"f2": "report"}) == "macro_f1"


@pytest.mark.parametrize(
    "metrics",
    [
        {"f2": "objektive"},
        {"f2": {}},
        {"f2": {"at_last": 3}},
        {"f2": {"at_least": "20ms"}},
        {"f2": {"at_least": float("nan")}},
        {"f2": {"at_least": True}},
        {"f2": {"at_least": 0.7, "at_most": 0.6}},
        {"latency_ms": {"at_most": "20MB"}},
        {"latency_ms": "objective"},
        {"f1": "objective", "f2": "objective"},
    ],
)
def test_a_role_that_cannot_be_read_is_refused(metrics: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.metrics") as told:
        read_roles(metrics)
    assert told.value.next_step


def test_two_objectives_in_two_places_are_refused() -> None:
    with pytest.raises(ConfigError, match="makes f2 the objective"):
        objective("macro_f1", {"f2": "objective"})


def test_the_gate_fails_what_misses_a_constraint_and_knows_nothing_of_what_is_undefined() -> None:
    better = PairedDifference(value=0.1, low=0.05, high=0.2, wins=5, losses=1, rows=50)
    passed = judge_quality(better, 0.01)
    assert judge_constraints(passed, ["size 3, at most 2"], []) == (
        "Failed", "constraint_missed: size 3, at most 2",
    )  # fmt: skip
    assert judge_constraints(passed, [], ["size"])[0] == "Inconclusive"
    assert judge_constraints(passed, [], []) == ("Successful", "better")
    assert judge_quality(None, 0.01) == ("Inconclusive", "metric_undefined")
    assert judge_first(None, 0.1, None, margin=0.01) == ("Inconclusive", "metric_undefined")
    assert judge_first(0.2, None, None, margin=0.01) == ("Successful", "first_release")
    assert judge_first(0.1, 0.1, None, margin=0.01)[0] == "Failed"


def test_a_difference_with_what_is_undefined_is_none_never_a_difference_from_zero() -> None:
    flat = [3.0] * 5
    assert paired(find_evaluator("r2"), flat, flat, NUMBERS[:5]) is None
    shy = autoglm.make_evaluator(lambda _t, p: None if p[0] == "x" else 1.0)
    assert paired(shy, ["a", "b"], ["x", "b"], ["a", "b"]) is None


def test_what_an_evaluator_does_to_its_rows_no_other_one_sees() -> None:
    def sorts(truth: list[str], prediction: list[str]) -> float:
        truth.sort()
        prediction.clear()
        return 1.0

    truth, said = ["b", "a"], ["b", "b"]
    assert value_of(autoglm.make_evaluator(sorts), truth, said) == 1.0
    assert (truth, said) == (["b", "a"], ["b", "b"])


def test_the_error_of_a_share_is_never_none_and_of_what_is_no_share_there_is_none() -> None:
    assert standard_error(0.95, 220) == pytest.approx(0.0157, abs=1e-4)
    # All rows are right: one of the next may be wrong.
    assert 1 / 220 < (standard_error(1.0, 220) or 0.0) < 2 / 220
    assert standard_error(0.0, 220) == pytest.approx(standard_error(1.0, 220))
    assert standard_error(12.5, 220) is None
