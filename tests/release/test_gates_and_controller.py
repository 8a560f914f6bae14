from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoglm import fail_points
from autoglm.clock import SteeredClock
from autoglm.contracts.evaluation_report import PairedDifference
from autoglm.contracts.measurement import Block, VersionWindow
from autoglm.contracts.rollout import Rollout, RouteTable
from autoglm.errors import ReleaseError
from autoglm.release.config import ReleaseConfig
from autoglm.release.controller import RolloutController
from autoglm.release.gates import judge
from autoglm.release.offline_gate import judge_first, judge_quality
from autoglm.serving.router import choose
from autoglm.state.engine import open_state
from autoglm.state.event_log import EventLog

CONFIG = ReleaseConfig()


def window(requests: int, *, errors: int = 0, mean: float | None = 20.0) -> VersionWindow:
    return VersionWindow(
        version="v",
        requests=requests,
        errors=errors,
        mean_latency_ms=mean,
        p50_ms=mean,
        p99_ms=mean,
        labelled=0,
        correct=0,
    )


def block(candidate: VersionWindow | None, stable: VersionWindow | None) -> Block:
    return Block(project="p", generation=1, candidate=candidate, stable=stable, lease_held=False)


@pytest.mark.parametrize(
    ("candidate", "stable", "weight", "action"),
    [
        (window(50), window(50), 5, "advance"),
        (window(49), window(500), 5, "wait"),
        (window(50), window(49), 50, "wait"),
        (window(50), None, 100, "advance"),
        (None, None, 5, "wait"),
        (window(50, mean=None), window(50), 5, "wait"),
        (window(50, mean=float("nan")), window(50), 5, "wait"),
        (window(100, errors=2), window(100), 5, "fail"),
        (window(100, errors=2), window(100, errors=2), 5, "advance"),
        (window(50, mean=201.0), window(50), 5, "pause"),
        (window(50), window(50, mean=201.0), 5, "pause"),
    ],
)  # fmt: skip
def test_no_data_is_never_pass_and_never_fail(
    candidate: VersionWindow | None, stable: VersionWindow | None, weight: int, action: str
) -> None:
    assert judge(block(candidate, stable), CONFIG, weight=weight).action == action


def test_the_offline_gate_takes_a_candidate_that_is_not_worse() -> None:
    def difference(value: float, low: float, high: float) -> PairedDifference:
        return PairedDifference(value=value, low=low, high=high, wins=0, losses=0, rows=100)

    assert judge_quality(difference(0.02, 0.01, 0.03), 0.01) == ("Successful", "better")
    assert judge_quality(difference(-0.005, -0.02, 0.01), 0.01) == ("Successful", "not_worse")
    assert judge_quality(difference(-0.02, -0.04, 0.01), 0.01)[0] == "Failed"
    assert judge_quality(difference(-0.005, -0.009, -0.001), 0.01)[0] == "Failed"
    better, worse = difference(0.1, 0.05, 0.15), difference(-0.1, -0.15, -0.05)
    unclear, slight = difference(-0.02, -0.05, 0.01), difference(-0.005, -0.008, -0.002)
    assert judge_first(0.9, 0.5, better, margin=0.01) == ("Successful", "first_release")
    assert judge_first(0.5, 0.5, better, margin=0.01) == ("Failed", "below_majority")
    assert judge_first(0.7, 0.5, worse, margin=0.01) == ("Failed", "below_linear_floor")
    assert judge_first(0.7, 0.5, unclear, margin=0.01) == ("Successful", "first_release")
    assert judge_first(0.7, 0.5, slight, margin=0.01) == ("Successful", "first_release")


@given(st.text(max_size=20), st.lists(st.integers(0, 100), min_size=2, max_size=6).map(sorted))
def test_a_key_never_goes_back_while_the_weight_grows(key: str, weights: list[int]) -> None:
    routes = RouteTable(
        project="p",
        generation=1,
        stable="s" * 32,
        candidate="c" * 32,
        candidate_weight=0,
        folders={},
        traces={},
        salt="x",
    )
    sides = [
        choose(replace(routes, candidate_weight=w), override="", key=key or "k", chance=0.5)
        for w in weights
    ]
    assert sides == sorted(sides, reverse=True)  # "sss…" before "ccc…"


class MemoryGateway:
    """The gateway's two calls, answered from memory."""

    def __init__(self, *blocks: Block, is_down: bool = False) -> None:
        self.tables: list[RouteTable] = []
        self.blocks, self.is_down = blocks or (block(window(60), window(60)),), is_down

    def set_routes(self, routes: RouteTable) -> None:
        assert not self.tables or routes.generation > self.tables[-1].generation
        self.tables.append(routes)

    def routes(self) -> RouteTable | None:
        return self.tables[-1] if self.tables else None

    def measure(self, query: str, *, window: timedelta) -> Block:
        if self.is_down:
            raise ReleaseError("down")
        return self.blocks[0]


ROLLOUT = Rollout(
    project="p", rollout_id="x", run_id="r", candidate="c", stable="s", kind="quality",
    steps=(5, 25, 50, 100), step=0, weight=0, verdict=None, reason="", is_paused=False,
    is_replayed=False, started_at=datetime(2026, 1, 1, tzinfo=UTC), traceparent="",
)  # fmt: skip
FOLDERS = {"c": "/c", "s": "/s"}


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(open_state(tmp_path / "state.db"))


def rolled(gateway: MemoryGateway, log: EventLog, *, alive: bool = True) -> Rollout:
    controller = RolloutController(
        gateway=gateway, log=log, clock=SteeredClock(), config=CONFIG, on_event=lambda _e: None
    )
    return controller.run(
        ROLLOUT, FOLDERS, {}, cancel=threading.Event(), traffic_alive=lambda: alive
    )


def test_a_good_candidate_is_promoted_step_by_step(log: EventLog) -> None:
    gateway = MemoryGateway()
    assert rolled(gateway, log).verdict == "Successful"
    assert [t.candidate_weight for t in gateway.tables] == [5, 25, 50, 100, 0]
    assert (gateway.tables[-1].stable, gateway.tables[-1].candidate) == ("c", "")
    assert rolled(gateway, log).verdict == "Successful", "asked again, it tells its verdict"
    assert len(gateway.tables) == 5


def test_a_failing_candidate_loses_its_traffic_first_and_its_place_then(log: EventLog) -> None:
    gateway = MemoryGateway(block(window(60, errors=30), window(60)))
    assert rolled(gateway, log).verdict == "Failed"
    assert [(t.candidate, t.candidate_weight) for t in gateway.tables] == [
        ("c", 5),
        ("c", 0),
        ("", 0),
    ]
    assert gateway.tables[-1].stable == "s"


def test_without_traffic_or_numbers_the_rollout_is_inconclusive(
    log: EventLog, tmp_path: Path
) -> None:
    waiting = MemoryGateway(block(None, None))
    assert (rolled(waiting, log, alive=False).verdict, waiting.tables[-1].candidate) == (
        "Inconclusive",
        "",
    )
    other = EventLog(open_state(tmp_path / "other.db"))
    late = rolled(MemoryGateway(block(None, None)), other)
    assert (late.verdict, late.reason) == ("Inconclusive", "no_traffic")
    third = EventLog(open_state(tmp_path / "third.db"))
    assert rolled(MemoryGateway(is_down=True), third).verdict == "Inconclusive"


@pytest.mark.parametrize("point", ["release.before_weight", "release.after_weight"])
def test_a_controller_that_died_goes_on_at_the_same_step(point: str, log: EventLog) -> None:
    gateway = MemoryGateway()
    fail_points.arm(f"{point}:raise@2")
    try:
        with pytest.raises(OSError, match="fail point"):
            rolled(gateway, log)
    finally:
        fail_points.arm("")
    assert rolled(gateway, log).verdict == "Successful"
    weights = [t.candidate_weight for t in gateway.tables]
    assert weights == sorted(weights[:-1]) + [0]
    assert set(weights[:-1]) == {5, 25, 50, 100}
