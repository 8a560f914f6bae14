"""What is kept is whole, of the last few, and nobody's leavings stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from autoglm.reuse import kept_arrays
from autoglm.reuse.kept_arrays import ABANDONED, KEPT, keep_arrays, read_arrays


def numbers(value: int) -> dict[str, np.ndarray]:
    return {"n": np.array([value], np.int64)}


def kept(folder: Path, key: str) -> int | None:
    found = read_arrays(folder, key)
    return None if found is None else int(found["n"][0])


def test_the_last_of_a_name_is_kept(tmp_path: Path) -> None:
    for value in (1, 2, 2):
        keep_arrays(tmp_path, "a", numbers(value))
    assert kept(tmp_path, "a") == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_new_stays_whatever_the_clock_said_of_the_others(tmp_path: Path) -> None:
    for value in range(KEPT + 2):
        keep_arrays(tmp_path, f"old{value}", numbers(value))
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() + 1e6, time.time() + 1e6))
    keep_arrays(tmp_path, "new", numbers(7))
    assert kept(tmp_path, "new") == 7
    assert len(list(tmp_path.iterdir())) == KEPT


def test_half_written_files_of_killed_processes_go_and_those_of_living_ones_stay(
    tmp_path: Path,
) -> None:
    for name, age in ((".dead.part", ABANDONED + 9), (".living.part", 0)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    keep_arrays(tmp_path, "a", numbers(1))
    assert [path.name for path in tmp_path.glob(".*")] == [".living.part"]


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_arrays(tmp_path, "a", numbers(1))

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(content[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_arrays.Path, "write_bytes", full)
    keep_arrays(tmp_path, "a", numbers(2))
    assert kept(tmp_path, "a") == 1
    assert len(list(tmp_path.iterdir())) == 1
