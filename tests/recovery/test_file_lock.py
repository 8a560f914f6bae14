from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from autoglm.errors import CancelledError
from autoglm.recovery.file_lock import alone, alone_if_free, beside
from autoglm.training.decisions import Decisions

HOLD = """
import sys
from pathlib import Path
from autoglm.recovery.file_lock import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_held_is_free(tmp_path: Path) -> None:
    path = tmp_path / "a" / ".lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with alone_if_free(path) as is_free:
            assert not is_free
        process.kill()
        with alone(path):
            pass


def test_several_hold_a_file_beside_each_other_and_nobody_alone_then(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with beside(path), beside(path), alone_if_free(path) as is_free:
        assert not is_free
    with alone_if_free(path) as is_free:
        assert is_free


def test_who_waits_can_be_stopped(tmp_path: Path) -> None:
    def stop() -> None:
        raise CancelledError("enough")

    path = tmp_path / ".lock"
    with alone(path), pytest.raises(CancelledError), beside(path, stop=stop):
        raise AssertionError("it is held")


def test_a_file_that_was_removed_by_its_holder_is_held_anew_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    waits, has_it, may_end = threading.Event(), threading.Event(), threading.Event()

    def next_one() -> None:
        with beside(path, stop=waits.set):
            has_it.set()
            assert may_end.wait(60)

    thread = threading.Thread(target=next_one)
    with alone(path):
        thread.start()
        assert waits.wait(60)  # it has the old file open
        path.unlink()
    assert has_it.wait(60)
    with alone_if_free(path) as is_free:
        assert not is_free, "the file that is there now is held"
    may_end.set()
    thread.join()


def test_what_two_processes_decide_at_once_is_measured_once_and_both_names_are_kept(
    tmp_path: Path,
) -> None:
    path, measured, both = tmp_path / "decisions.json", [], threading.Barrier(4)

    def decide(name: str) -> None:
        both.wait(60)

        def measure() -> int:
            measured.append(name)
            return len(measured)

        Decisions(path).decided(name, measure)

    threads = [threading.Thread(target=decide, args=(name,)) for name in ("a", "a", "b", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(measured) == ["a", "b"]
    assert {Decisions(path).decided(name, lambda: 0) for name in ("a", "b")} == {1, 2}


def test_deciding_may_ask_for_another_decision(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path / "decisions.json")
    assert decisions.decided("probe", lambda: 1 + decisions.decided("precision", lambda: 2)) == 3
    assert decisions.decided("precision", lambda: 0) == 2
