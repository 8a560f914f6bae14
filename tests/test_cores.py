"""A process counts the cores that it may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autoglm import cores as module
from autoglm.cores import cores


@pytest.mark.parametrize(
    ("said", "num"),
    [
        ("max 100000", 64),  # no limit
        ("200000 100000", 2),
        ("150000 100000", 2),  # a core and a half keeps two threads at work
        ("10000 100000", 1),
        ("9900000 100000", 64),  # more than there are
        ("", 64),
    ],
)
def test_a_containers_cpu_limit_counts_not_the_machines_cores(
    said: str, num: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(said)
    monkeypatch.setattr(module, "QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)), raising=False)
    assert cores() == num


def test_a_process_that_is_bound_to_one_core_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUOTA", tmp_path / "none")
    bound = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(bound)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, bound)


def test_where_nobody_says_what_is_allowed_the_machines_cores_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUOTA", tmp_path / "none")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cores() == 3
