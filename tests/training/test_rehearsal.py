"""What a trial from stable goes over again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autoglm.errors import DataError
from autoglm.modeling.images import Pixels, Preprocessor
from autoglm.training import rehearsal
from autoglm.training.data import Encoded
from autoglm.training.rehearsal import LEAST_ROWS, Rehearsal
from training import toy

QUARTER = {"rehearsal": 0.25}
DATASET: Any = object()


def rows(count: int = 240, *, rare: int = 12) -> Encoded:
    targets = torch.tensor([int(i < rare) for i in range(count)])
    keys = [f"row {i}" for i in range(count)]
    return Encoded(
        ids=toy.ids(count), targets=targets, num_train=count - 40, label_names=("a", "b"), keys=keys
    )


def png(pixels: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def of(monkeypatch: pytest.MonkeyPatch, data: Encoded, changed: Sequence[int]) -> Rehearsal:
    monkeypatch.setattr(rehearsal, "rows_since", lambda *_asked: list(changed))
    assert data.keys is not None
    return Rehearsal(DATASET, 3, data.keys)


def test_all_that_changed_and_a_share_of_each_labels_other_rows_are_learnt_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, changed = rows(), [0, 50, 51, 199, 210]
    mine = of(monkeypatch, data, changed)
    assert mine.share(QUARTER) == 0.25
    found = mine.rows(data, 0.25)
    assert found.keys is not None
    learnt = found.keys[: found.num_train]
    assert {f"row {i}" for i in changed if i < 200} <= set(learnt)
    labels = Counter(found.targets[: found.num_train].tolist())
    assert labels == {1: LEAST_ROWS + 1, 0: 47 + 3}, "184 others of 187, and the changed ones"
    assert found.keys[found.num_train :] == data.keys[200:], "all rows validate, in their order"
    assert list(learnt) == sorted(learnt, key=lambda key: int(key.split()[1]))


def test_the_same_rows_are_drawn_when_others_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what the cache knows of them is used again."""
    data = rows()
    first = of(monkeypatch, data, []).rows(data, 0.5)
    drawn = set(first.keys or ()) - {f"row {i}" for i in range(200, 240)}
    gone = int(sorted(drawn)[0].split()[1])
    order = [*range(199, -1, -1), *range(200, 240)]
    moved = data.chosen([i for i in order if i != gone], num_train=199)
    second = of(monkeypatch, moved, []).rows(moved, 0.5)
    kept = set((second.keys or ())[: second.num_train])
    assert len(drawn - kept) == 1
    assert len(kept - drawn) <= 1


def test_all_rows_are_learnt_from_where_nobody_says_which_the_start_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = rows()
    mine = of(monkeypatch, data, [1])
    assert mine.share({"rehearsal": 0.0}) == mine.share({"rehearsal": 1.0}) == 1
    assert mine.said({"rehearsal": 1.0}) == ()
    assert mine.said(QUARTER) == (0.25, 3)
    assert mine.rows(data, 1.0) is data
    backbone = Rehearsal(DATASET, None, data.keys or ())
    assert (backbone.share(QUARTER), backbone.said(QUARTER)) == (1, ())

    def gone(*_asked: Any) -> list[int]:
        raise DataError("it is gone", code="data.version_gone", next_step="-")

    monkeypatch.setattr(rehearsal, "rows_since", gone)
    assert Rehearsal(DATASET, 3, data.keys or ()).said(QUARTER) == ()


def test_rows_without_one_label_are_drawn_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    data = replace(rows(), targets=torch.rand(240))
    assert of(monkeypatch, data, [0]).rows(data, 0.1).num_train == 1 + 20


def test_images_are_drawn_by_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(1)
    plain = Preprocessor(
        num_channels=1, resize=None, crop=None, resample=2, scale=1.0, mean=(0.0,), std=(1.0,)
    )
    pixels = Pixels([png(noise.integers(0, 255, (8, 8), dtype=np.uint8)) for _ in range(60)], plain)
    data = replace(rows(60, rare=0), ids=pixels)
    found = of(monkeypatch, data, []).rows(data, 0.5)
    assert found.num_train == 10
    backwards = data.chosen([*range(19, -1, -1), *range(20, 60)], num_train=20)
    again = of(monkeypatch, backwards, []).rows(backwards, 0.5)
    assert set(found.keys or ()) == set(again.keys or ())
