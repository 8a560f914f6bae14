"""Rows are tokenised once; what lies on disk says what the tokenizer said, or is a miss."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from autoglm.datasets.tokenised import Tokens, tokenised
from autoglm.reuse.kept_arrays import KEPT

ROWS = [Tokens([2, 5, 9, 3], [None, 0, 0, None]), Tokens([2, 3], [None, None]), Tokens([7], [0])]


class Tokenizer:
    asked = 0

    def __call__(self) -> list[Any]:
        self.asked += 1
        return ROWS


def test_what_was_tokenised_is_read_again_as_it_was(tmp_path: Path) -> None:
    tokenizer = Tokenizer()
    for _ in range(3):
        assert tokenised(tmp_path, "rows", tokenizer) == ROWS
    assert tokenizer.asked == 1
    assert tokenised(tmp_path, "other", tokenizer) == ROWS
    assert tokenizer.asked == 2
    assert tokenised(None, "rows", tokenizer) == ROWS
    assert tokenizer.asked == 3


def test_a_damaged_file_is_a_miss_and_a_full_disk_costs_nothing_but_time(tmp_path: Path) -> None:
    tokenizer = Tokenizer()
    tokenised(tmp_path, "rows", tokenizer)
    (kept,) = tmp_path.glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert tokenised(tmp_path, "rows", tokenizer) == ROWS
    assert tokenizer.asked == 2
    (tmp_path / "file").write_text("stands where a folder should be")
    assert tokenised(tmp_path / "file", "rows", tokenizer) == ROWS


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT + 3):
        tokenised(tmp_path, f"rows{number}", Tokenizer())
        for path in tmp_path.glob(f"rows{number}.*"):
            os.utime(path, (number, number))
    names = {path.name.split(".")[0] for path in tmp_path.glob("*.safetensors")}
    assert names == {f"rows{number}" for number in range(3, KEPT + 3)}
