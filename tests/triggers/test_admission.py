from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autoglm import fail_points
from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.trigger_event import Decision, TriggerEvent, TriggerKind
from autoglm.state.engine import open_state
from autoglm.triggers.admission import Admission

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def admission(tmp_path: Path) -> Admission:
    return Admission(open_state(tmp_path / "state.db"), tmp_path)


def event(cause: str, kind: TriggerKind = "command") -> TriggerEvent:
    return TriggerEvent(
        project="p", trigger=kind, cause=cause, reason="r", requested_at=NOW, traceparent="",
        overrides={},
    )  # fmt: skip


def spec_of(rows: str) -> Callable[[str], RunSpec]:
    dataset = DatasetVersion(
        project="p", uri="u", version=1, rows=9, split_rows={}, labels=("a", "b"), label_counts={},
        rare_labels={}, unlabelled_rows=0, dead_rows=0, text="t", label="l", split={},
        schema_digest="s", content_digest=rows, positions={}, traceparent="", linked_traces=(),
        created_at=NOW,
    )  # fmt: skip
    return lambda run_id: RunSpec(
        project="p", run_id=run_id, cause=rows, trigger="command", dataset=dataset, config={},
        config_digest="c", seed=0, stable="", folder="", traceparent="", tuning="default",
        created_at=NOW,
    )  # fmt: skip


def ask(admission: Admission, rows: str, kind: TriggerKind = "command") -> Decision:
    decision = admission.decide(event(rows, kind), spec_of(rows))
    if decision.outcome == "admitted":
        admission.set_status(decision.run_id, "succeeded")
    return decision


def test_rows_that_are_changed_back_are_a_change_again(admission: Admission) -> None:
    first = ask(admission, "A")
    assert ask(admission, "A").outcome == "unchanged"
    assert ask(admission, "B").outcome == "admitted"
    back = ask(admission, "A")
    assert back.outcome == "admitted"
    assert back.run_id != first.run_id
    assert ask(admission, "A").outcome == "unchanged"
    assert admission.find(event("A")) is not None
    assert admission.find(event("B")) is None


def test_a_request_by_hand_is_one_request_for_ever(admission: Admission) -> None:
    first = ask(admission, "key", "manual")
    ask(admission, "B")
    again = ask(admission, "key", "manual")
    assert (again.outcome, again.run_id) == ("unchanged", first.run_id)


def test_a_living_run_is_known_and_a_failed_one_may_be_tried_again(admission: Admission) -> None:
    first = admission.decide(event("A"), spec_of("A"))
    assert admission.decide(event("A"), spec_of("A")).outcome == "known"
    admission.set_status(first.run_id, "failed")
    second = admission.decide(event("A"), spec_of("A"))
    assert second.outcome == "admitted"
    assert second.run_id != first.run_id
    assert admission.unfinished() == [second.run_id]


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_change_makes_one_run_also_when_admission_breaks_off(
    admission: Admission, point: str
) -> None:
    fail_points.arm(f"hop7.{point}_commit:raise")
    with pytest.raises(OSError, match="fail point"):
        admission.decide(event("A", "data_changed"), spec_of("A"))
    assert len(admission.rows()) == (0 if point == "before" else 1)
    again = admission.decide(event("A", "data_changed"), spec_of("A"))
    assert again.outcome == ("admitted" if point == "before" else "known")
    assert [row["run_id"] for row in admission.rows()] == [again.run_id]
    assert admission.unfinished() == [again.run_id]
