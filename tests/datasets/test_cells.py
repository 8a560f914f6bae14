"""What a cell of a user's column means to each task."""

from __future__ import annotations

import pytest

from autoglm.contracts.task import TASKS, answer_from_json, answer_to_json
from autoglm.datasets.cells import problem_of, read_answer, read_input

TAGGING, MULTI = TASKS["token-classification"], TASKS["multi-label-classification"]
NUMBER, LABEL = TASKS["regression"], TASKS["text-classification"]


def test_tokens_and_labels_are_read_from_json_or_between_separators() -> None:
    for cell in ('["New", "York"]', "New York", " New  York "):
        assert read_input(cell, TAGGING) == ("New", "York")
    assert read_input("[ is no list", TAGGING) == ("[", "is", "no", "list")
    assert read_answer('["b", "a"]', MULTI) == read_answer("a, b,", MULTI) == {"a", "b"}
    assert read_answer("a|b, c", MULTI, "|") == {"a", "b, c"}
    assert read_answer("[]", MULTI) == frozenset()
    assert read_answer("[1, 2]", MULTI) == {"1", "2"}
    assert read_answer(" 4.50 ", NUMBER) == 4.5
    assert read_answer("a, b", LABEL) == "a, b"


@pytest.mark.parametrize(
    ("text", "answer", "form", "code", "cause"),
    [
        ("a b", "B-X", TAGGING, "data.bad_answer", "2 tokens, but 1 tags"),
        ('["a", {"x": 1}]', "O O", TAGGING, "data.bad_input", "no list of texts"),
        ("[]", None, TAGGING, "data.empty_text", "no token"),
        ("some text", '["a"', MULTI, "data.bad_answer", "no JSON list"),
        ("some text", "[[1]]", MULTI, "data.bad_answer", "no list of texts"),
        ("some text", "four", NUMBER, "data.bad_answer", "no number"),
        ("some text", "nan", NUMBER, "data.bad_answer", "no finite number"),
        ("some text", "1e999", NUMBER, "data.bad_answer", "no finite number"),
    ],
)
def test_a_cell_that_teaches_nothing_is_told_by_code_and_cause(
    text: str, answer: str | None, form: object, code: str, cause: str
) -> None:
    problem = problem_of(text, answer, form)  # type: ignore[arg-type]
    assert problem is not None
    assert problem[0] == code
    assert cause in problem[1]


def test_a_row_without_an_answer_is_no_problem_it_waits() -> None:
    for form in TASKS.values():
        for nothing in (None, "", "  "):
            assert problem_of("some text", nothing, form) is None


def test_answers_survive_json() -> None:
    for form, answer in (
        (MULTI, frozenset("ba")),
        (TAGGING, ("O", "B")),
        (NUMBER, 2.5),
        (LABEL, "x"),
    ):
        assert answer_from_json(answer_to_json(answer), form) == answer
    assert answer_to_json(frozenset("ba")) == ["a", "b"]
    for form, wrong in ((NUMBER, True), (NUMBER, "1"), (TAGGING, "O"), (MULTI, [1]), (LABEL, 1.0)):
        with pytest.raises(ValueError, match=r"no (number|list of texts|text)"):
            answer_from_json(wrong, form)
