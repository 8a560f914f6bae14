"""The long benchmarks: what goes on after a stop, and how figures are counted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from benchmarks import optimizers, parts, quality, rows

WORDS = {"tokens": ["In", "New", "York", "today"], "tags": ["O", "B-loc", "I-loc", "O"]}
TAGS = ["O", "B-loc", "I-loc"]


def test_a_part_that_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"result": {"value": 3}}')
    with pytest.raises(SystemExit, match="ended with code"):
        parts.run_parts("no_module_of_this_name", tmp_path, ["a", "b"])
    assert parts.run_parts("no_module_of_this_name", tmp_path, ["a"])["a"]["result"]["value"] == 3


def test_a_result_names_what_figures_depend_on() -> None:
    assert {"cpu", "cores", "python", "torch", "transformers"} <= parts.machine().keys()


@pytest.mark.parametrize(
    ("said", "wanted"),
    [([0, 1, 2, 0], 1.0), ([0, 1, 0, 0], 0.0), ([1, 1, 2, 0], 2 / 3), ([0, 0, 0, 0], 0.0)],
)
def test_entities_count_as_a_whole(said: list[int], wanted: float) -> None:
    assert rows.score([WORDS], [([0, 1, 2, 0], said)], TAGS) == pytest.approx(wanted)


def test_a_word_that_was_cut_off_is_missed_not_forgiven() -> None:
    assert rows.score([WORDS], [([0], [0])], TAGS) == 0.0
    ignored = rows.IGNORED
    assert rows.score([WORDS], [([ignored, 0, 1, ignored, 2], [1, 0, 1, 1, 2])], TAGS) == 1.0


def test_a_set_in_one_file_is_divided_alike_for_every_seed(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    texts = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(2000)]
    (tmp_path / "one" / "all.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    first, second = (rows.read(tmp_path, "one", seed=seed, num_train=700) for seed in (0, 1))
    assert first.test == second.test
    assert first.validation == second.validation
    assert first.train != second.train
    held = {row["text"] for row in (*first.test, *first.validation)}
    assert len(held) == 900
    assert not held & {row["text"] for row in first.train}


def test_a_bar_and_the_peer_are_both_judged() -> None:
    def result(value: float) -> dict[str, dict[str, float]]:
        return {"result": {"test": value}}

    found = {f"trec.peer.{s}": result(v) for s, v in enumerate((0.97, 0.98, 0.975))}
    good = {f"trec.ours.{s}": result(0.966) for s in range(3)}
    assert quality.judged({**found, **good})[1] == []
    below_peer = {f"trec.ours.{s}": result(0.96) for s in range(3)}
    assert "below the peer" in quality.judged({**found, **below_peer})[1][0]
    assert "is below 0.955" in quality.judged({"trec.ours.0": result(0.9)})[1][0]


def test_steps_spikes_and_a_target_that_is_never_reached() -> None:
    falls = [1.0] * 10 + [0.5] * 10
    assert optimizers.steps_to(0.75, falls) == 15
    assert math.isinf(optimizers.steps_to(0.4, falls))
    assert optimizers.spike([1.0] * 10 + [3.0, 1.0]) == 2.0
