"""The long benchmarks: what goes on after a stop, and how figures are counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from benchmarks import fresh, optimizers, parts, pruning, quality, rows, search_peer

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


def test_a_new_run_is_judged_by_its_share_of_the_first_and_its_distance_from_scratch() -> None:
    def result(seconds: float, test: float) -> dict[str, dict[str, object]]:
        return {"result": {"by_step": {"search": seconds, "export": 1.0}, "test": test}}

    found = {
        "trec.0.first": result(99.0, 0.94),
        "trec.0.stable": result(9.0, 0.94),
        "trec.0.backbone": result(39.0, 0.93),
        "trec.0.scratch": result(99.0, 0.944),
    }
    ratios, missed = fresh.judged(found)
    assert (ratios["trec.0.stable_share"], ratios["trec.0.backbone_share"]) == (0.1, 0.4)
    assert [line.split(":")[0] for line in missed] == ["trec.0.backbone", "trec.0.backbone"]


def test_one_per_cent_of_the_rows_that_are_learnt_from_are_changed(tmp_path: Path) -> None:
    (tmp_path / "trec").mkdir()
    lines = {"train": 3000, "test": 50}
    for part, num in lines.items():
        said = [{"text": f"{part} {i}", "label": "ab"[i % 2]} for i in range(num)]
        (tmp_path / "trec" / f"{part}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in said)
        )
    old, new = (of(tmp_path, "trec", 0) for of in (fresh.rows_of, fresh.changed_rows))
    others = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    assert len(others) == 22
    assert all(a["id"] == b["id"] and a["part"] == b["part"] != "test" for a, b in others)
    assert not {b["text"] for _, b in others} & {row["text"] for row in old}


def test_dimensions_that_do_not_matter_are_asked_only_where_nothing_is_pruned() -> None:
    lr, dropout = pruning.READ["training.lr"][1], pruning.READ["training.dropout"][0]
    values = {
        pruning.name_of(point): float(
            point["training.lr"] == lr and point["training.dropout"] == dropout
        )
        for point in pruning.points()
    }
    for is_pruned in (True, False):
        num = pruning.num_trials(values, 0, is_pruned=is_pruned)
        assert 1 <= num < pruning.MOST_TRIALS


def test_a_peer_that_goes_on_elsewhere_counts_in_one_pace() -> None:
    told = [{"cpu": 10.0, "state": "done"}, {"cpu": 4.0, "state": "pruned"}]
    once = search_peer.at_pace(told, 1.5)
    assert [(t["cpu"], t["cpu_then"]) for t in once] == [(15.0, 10.0), (6.0, 4.0)]
    again = search_peer.at_pace(once, 2.0)
    assert [(t["cpu"], t["cpu_then"]) for t in again] == [(30.0, 10.0), (12.0, 4.0)]

    class Peer:
        def trial(self, point: dict[str, Any], number: int) -> dict[str, Any]:
            seen.append(number)
            return {"cpu": 3.0}

    seen: list[int] = []
    point = {"lr": 1e-3, "trainable_layers": 0, "dropout": 0.0, "epochs": 1, "state": "done"}
    known = [{**point, "cpu": cpu} for cpu in (9.0, 1.0, 5.0, 2.0)]
    found = search_peer.repeated(Peer(), known, 2)  # type: ignore[arg-type]
    assert seen == [1, 3], "the cheapest"
    assert found["factor"] == 2.0
