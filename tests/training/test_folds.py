from __future__ import annotations

from collections import Counter

import pytest
import torch

from autoglm.errors import TrainingError
from autoglm.training.data import Encoded
from autoglm.training.folds import dealt, folded
from training import toy

NUM = 5


def rows(count: int = 60) -> Encoded:
    ids = toy.ids(count)
    targets = torch.tensor([0 if i % 6 else 1 for i in range(count)])
    return Encoded(ids=ids, targets=targets, num_train=count - 10, label_names=("a", "b"))


def test_each_row_validates_in_one_fold_and_is_learnt_from_in_all_others() -> None:
    data = rows()
    seen = Counter[tuple[int, ...]]()
    for number in range(1, NUM + 1):
        fold = folded(data, f"{number}/{NUM}", seed=3)
        assert len(fold.ids) == len(data.ids)
        validation = {tuple(fold.ids[i]) for i in fold.validation}
        assert not validation & {tuple(fold.ids[i]) for i in fold.train}, "alike rows part"
        seen.update(tuple(fold.ids[i]) for i in fold.validation)
        pairs = Counter((tuple(row), int(t)) for row, t in zip(fold.ids, fold.targets, strict=True))
        assert pairs == Counter(
            (tuple(row), int(t)) for row, t in zip(data.ids, data.targets, strict=True)
        )
    assert seen == Counter(map(tuple, data.ids))
    assert fold.half == "all", "a row's states serve the folds that learn from it"


def test_each_label_is_spread_evenly_over_the_folds() -> None:
    names = [str(i).encode() for i in range(103)]
    labels = ["rare" if i < 11 else "common" for i in range(103)]
    folds = dealt(names, labels, NUM, seed=1)
    for label in ("rare", "common"):
        sizes = Counter(f for f, each in zip(folds, labels, strict=True) if each == label)
        assert max(sizes.values()) - min(sizes[f] for f in range(NUM)) <= 1


def test_folds_follow_the_rows_whatever_their_order() -> None:
    names = [str(i).encode() for i in range(50)]
    labels = [0] * 50
    there = dict(zip(names, dealt(names, labels, NUM, seed=1), strict=True))
    back = dict(zip(names[::-1], dealt(names[::-1], labels, NUM, seed=1), strict=True))
    assert there == back
    assert there != dict(zip(names, dealt(names, labels, NUM, seed=2), strict=True))


def test_too_few_rows_for_the_folds_are_refused() -> None:
    with pytest.raises(TrainingError, match="too few for 9 folds") as caught:
        folded(rows(4), "1/9", seed=0)
    assert caught.value.code == "training.folds"
