"""What a trial from stable goes over again: all that is new to stable, and a sample of the rest."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import learnable_rows

from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.stage_chain import FOLD, StageChain
from autoglm.loop import stations
from autoglm.loop.app import App
from autoglm.loop.change_to_dataset import collect_changes
from autoglm.project import Project
from autoglm.training.data import IGNORED, Encoded
from autoglm.training.rehearsal import LEAST_ROWS, Rehearsal, rehearsed
from autoglm.training.worker import Worker
from training import toy

QUARTER = {"rehearsal": 0.25}
OWN = [
    "data.min_rows=1",
    "data.split.column=part",
    "training.epochs=1",
    "training.batch_size=1",
    "training.precision=fp32",
    "training.threads=1",
    "training.log_steps=1",
]
CHANGED, RELABELLED, MOVED = range(4), range(4, 6), range(170, 180)


@dataclass
class Versions:
    """A dataset version, and the next: rows with another text and label, and rows that validated
    before and are learnt from now.
    """

    spec: Any
    then: DatasetVersion
    now: DatasetVersion


def rows() -> list[dict[str, str]]:
    """120 to learn from, 60 that validate, 20 that test."""
    found = learnable_rows(200)
    parts = ["train"] * 120 + ["validation"] * 60 + ["test"] * 20
    return [{**row, "part": part} for row, part in zip(found, parts, strict=True)]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Iterator[Versions]:
    folder = tmp_path_factory.mktemp("rehearsal")
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    init = ["init", str(folder / "p"), "--from", str(file), "--backbone", str(tiny_backbone)]
    subprocess.run([sys.executable, "-m", "autoglm.cli", *init], check=True, capture_output=True)
    project = Project(folder / "p", assignments=OWN)
    with project.own("test"):
        app = App(project=project)
        then = stations._spec(app).dataset
        with sqlite3.connect(folder / "p" / "data.db") as connection:
            names = [name for (name,) in connection.execute("select id from rows order by rowid")]
            for do, places in (
                ("text = text || ' after'", CHANGED),
                ("label = case label when 'sport' then 'money' else 'sport' end", RELABELLED),
                ("part = 'train'", MOVED),
            ):
                asked = [(names[place],) for place in places]
                connection.executemany(f"update rows set {do} where id = ?", asked)
        connection.close()
        collect_changes(project, app.cancel, app.on_event)
        spec = stations._spec(app)
        yield Versions(spec=spec, then=then, now=spec.dataset)
        app.close()


class Asked:
    """A worker on the newer version, whose start learnt from `learnt`, in this process."""

    def __init__(
        self, folder: Path, versions: Versions, start: Path, learnt: DatasetVersion | None
    ) -> None:
        self.events: list[Any] = []
        self._worker = Worker(folder, self.events.append, cache=folder / "cache")
        self._ask(
            "open", spec=to_json(versions.spec), start=str(start), start_name="s", origin="s",
            made_by={}, base=str(start), learnt=None if learnt is None else to_json(learnt),
        )  # fmt: skip

    def _ask(self, call: str, **arguments: Any) -> Any:
        return self._worker.answer({"id": 1, "call": call, **arguments})

    def plan(self, **params: Any) -> StageChain:
        return from_json(StageChain, self._ask("plan", params=params))

    def steps_of(self, chain: StageChain) -> int:
        """Optimizer steps that were made: one per row."""
        self.events.clear()
        self._ask("advance", chain=to_json(chain), to_step=chain.num_steps)
        return max(e["step"] for e in self.events if e["kind"] == "training")

    def cost(self, chain: StageChain) -> float:
        return float(self._ask("cost", chain=to_json(chain))["cpu_seconds"])


def keys(chain: StageChain) -> list[str]:
    return [stage.key for stage in chain.stages]


def share(value: float, **more: Any) -> dict[str, Any]:
    return {"training.rehearsal": value, **more}


def test_training_goes_over_what_is_new_to_stable_and_a_share_of_what_it_knows(
    tmp_path: Path, versions: Versions, tiny_backbone: Path
) -> None:
    new = len(CHANGED) + len(RELABELLED) + len(MOVED)
    known = 120 - len(CHANGED) - len(RELABELLED)
    asked = Asked(tmp_path, versions, tiny_backbone, versions.then)
    whole, quarter = asked.plan(), asked.plan(**share(0.25))
    assert whole.num_steps == new + known
    assert asked.cost(quarter) < asked.cost(whole)
    expected = new + known // 4
    assert abs(quarter.num_steps - expected) <= 2, "of each label a quarter, rounded up"
    assert asked.steps_of(quarter) == quarter.num_steps
    assert keys(asked.plan(**share(1.0))) == keys(whole)
    assert keys(asked.plan(**share(0.999))) == keys(whole), "it leaves out nothing"
    one_step = {"training.batch_size": 256}
    assert asked.plan(**share(0.5, **one_step)).num_steps == asked.plan(**one_step).num_steps == 1
    assert keys(asked.plan(**share(0.5, **one_step))) != keys(asked.plan(**one_step))


def test_all_rows_are_learnt_from_where_nobody_says_what_the_start_knows(
    tmp_path: Path, versions: Versions, tiny_backbone: Path
) -> None:
    backbone = Asked(tmp_path / "1", versions, tiny_backbone, None)
    whole = backbone.plan()
    assert keys(backbone.plan(**share(0.25))) == keys(whole)
    gone = replace(versions.then, version=99)
    missing = Asked(tmp_path / "2", versions, tiny_backbone, gone)
    assert keys(missing.plan(**share(0.25))) == keys(whole)
    no_table = replace(versions.then, uri=str(tmp_path / "nowhere"))
    elsewhere = Asked(tmp_path / "3", versions, tiny_backbone, no_table)
    assert elsewhere.plan(**share(0.25)).num_steps == whole.num_steps


def test_rows_that_only_validated_stable_are_new_to_it_in_every_fold(
    tmp_path: Path, versions: Versions, tiny_backbone: Path
) -> None:
    asked = Asked(tmp_path, versions, tiny_backbone, versions.then)
    chains = [asked.plan(**share(0.25, **{FOLD: f"{n}/3"})) for n in (1, 2, 3)]
    known = 120 - len(CHANGED) - len(RELABELLED)
    new = 180 - known
    total = sum(chain.num_steps for chain in chains)
    assert 2 * (new + known / 4) <= total <= 2 * (new + known / 4) + 3 * 2 * 2


def test_another_column_or_table_is_compared_by_what_its_rows_say(versions: Versions) -> None:
    swapped = replace(versions.then, label="part")
    assert not Rehearsal(versions.now, swapped).known, "no answer is what it was"
    known = Rehearsal(versions.now, versions.then).known
    assert len(known) == 120 - len(CHANGED) - len(RELABELLED)


def data(count: int = 200, *, targets: Any = None, **more: Any) -> Encoded:
    keys = [f"row {i}" for i in range(count)]
    targets = torch.tensor([i % 2 for i in range(count)]) if targets is None else targets
    return Encoded(
        ids=toy.ids(count), targets=targets, num_train=count, label_names=("a", "b"), keys=keys,
        **more,
    )  # fmt: skip


def drawn(rows: Encoded, share: float, content: str = "c") -> Encoded:
    """Of a start that knows all rows."""
    return rehearsed(rows, share, known={*(rows.keys or ())}, content=content)


def names(found: Encoded) -> list[str]:
    return list((found.keys or ())[: found.num_train])


def test_of_a_rare_label_ten_rows_are_gone_over() -> None:
    targets = torch.tensor([int(i < 12) for i in range(200)])
    found = drawn(data(targets=targets), 0.25)
    assert Counter(found.targets.tolist()) == {1: LEAST_ROWS, 0: 47}
    several = torch.tensor([[1.0, float(i < 12)] for i in range(200)])
    found = drawn(data(targets=several), 0.25)
    assert found.targets[:, 1].sum() == LEAST_ROWS, "of several labels the rarest counts"
    tags = [torch.tensor([IGNORED, int(i < 12), 0]) for i in range(200)]
    found = drawn(data(targets=tags), 0.25)
    assert sum(int((target == 1).any()) for target in found.targets) == LEAST_ROWS


def test_numbers_and_texts_are_drawn_from_all_rows() -> None:
    assert drawn(data(targets=torch.rand(200)), 0.1).num_train == 20
    turns = [torch.tensor([i]) for i in range(200)]
    found = drawn(data(targets=turns, firsts=[0] * 200), 0.1)
    assert found.num_train == 20


def test_a_draw_is_the_contents_and_in_the_end_each_row_is_drawn() -> None:
    rows = data()
    first = names(drawn(rows, 0.25, "c1"))
    turned = rows.chosen(list(range(199, -1, -1)), num_train=200)
    assert sorted(first) == sorted(names(drawn(turned, 0.25, "c1")))
    assert first != names(drawn(rows, 0.25, "c2"))
    in_the_end = {name for n in range(30) for name in names(drawn(rows, 0.25, f"c{n}"))}
    assert len(in_the_end) == 200
    assert drawn(rows, 0.9999) is rows


def test_the_kept_divisions_of_the_rows_are_few(
    tmp_path: Path, versions: Versions, tiny_backbone: Path
) -> None:
    from autoglm.training.worker import PARTS_KEPT

    asked = Asked(tmp_path, versions, tiny_backbone, versions.then)
    for n in range(PARTS_KEPT + 5):
        asked.plan(**share(0.2 + n / 100))
    assert len(asked._worker._parts) <= PARTS_KEPT
