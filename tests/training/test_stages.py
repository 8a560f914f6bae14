"""A trial is a chain of stages: what two of them have in common is trained once, to the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import learnable_rows

from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.stage_chain import FOLD, Progress, StageChain
from autoglm.loop import stations
from autoglm.loop.app import App
from autoglm.project import Project
from autoglm.recovery.file_lock import alone, beside
from autoglm.training import stages
from autoglm.training.launcher import SPINS, _environment
from autoglm.training.worker import Worker

OWN = [
    "training.threads=1",
    "training.schedule=constant",
    "training.warmup_steps=4",
    "training.batch_size=16",
    "training.precision=fp32",
    "training.trainable_layers=9",
]


class Runner:
    """The worker's side of the port, in this process."""

    def __init__(self, workspace: Path, spec: Any, start: Path) -> None:
        self.events: list[Any] = []
        self.workspace = workspace
        self._worker = Worker(workspace, self.events.append, cache=workspace / "cache")
        self._ask(
            "open",
            spec=to_json(spec),
            start=str(start),
            start_name="s",
            origin="s",
            made_by={},
            base=str(start),
        )

    def _ask(self, call: str, **arguments: Any) -> Any:
        return self._worker.answer({"id": 1, "call": call, **arguments})

    def plan(self, **params: Any) -> StageChain:
        return from_json(StageChain, self._ask("plan", params=params))

    def cost(self, chain: StageChain) -> Any:
        return self._ask("cost", chain=to_json(chain))

    def advance(self, chain: StageChain, depth: int, *, is_alone: bool = False) -> Progress:
        wanted: dict[str, Any] = {"chain": to_json(chain), "is_alone": is_alone}
        wanted["to_step"] = chain.boundaries[depth - 1]
        return from_json(Progress, self._ask("advance", **wanted))

    def weights(self, progress: Progress) -> dict[str, torch.Tensor]:
        return load_file(Path(progress.folder) / stages.WEIGHTS)

    @property
    def num_steps(self) -> int:
        """Optimizer steps that were made, by the last line that each stage told."""
        told = [e["step"] for e in self.events if e["kind"] == "evaluation" and e["epoch"]]
        return len(told)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("stages")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in learnable_rows(120)))
    init = ["init", str(folder / "p"), "--from", str(rows), "--backbone", str(tiny_backbone)]
    subprocess.run([sys.executable, "-m", "autoglm.cli", *init], check=True, capture_output=True)
    project = Project(folder / "p", assignments=OWN)
    with project.own("test"):
        app = App(project=project)
        yield stations._spec(app)
        app.close()


@pytest.fixture
def runner(tmp_path: Path, spec: Any, tiny_backbone: Path) -> Runner:
    return Runner(tmp_path / "work", spec, tiny_backbone)


def test_a_trial_in_pieces_and_a_trial_behind_another_have_the_bytes_of_one_in_one_go(
    tmp_path: Path, spec: Any, tiny_backbone: Path
) -> None:
    whole = Runner(tmp_path / "whole", spec, tiny_backbone)
    four = whole.plan(**{"training.epochs": 4, "training.dropout": 0.1})
    wanted = whole.advance(four, 4)

    pieces = Runner(tmp_path / "pieces", spec, tiny_backbone)
    two = pieces.plan(**{"training.epochs": 2, "training.dropout": 0.1})
    assert [s.key for s in two.stages] == [s.key for s in four.stages[:2]]
    assert pieces.advance(two, 1).reused_steps == 0
    end = pieces.advance(two, 2)
    assert end.reused_steps == two.boundaries[0]
    found = pieces.advance(four, 4)
    assert found.reused_steps == two.boundaries[1]
    assert found.saved["stage_tree"] == end.cpu_seconds > 0
    assert found.cpu_seconds > end.cpu_seconds
    assert "stage_tree" not in end.saved, "what it trained itself it did not save"
    assert pieces.num_steps == whole.num_steps == 4
    assert found.metrics == wanted.metrics
    left, right = pieces.weights(found), whole.weights(wanted)
    assert all(torch.equal(t, right[n]) for n, t in left.items())
    again = pieces.advance(four, 4)
    assert again.reused_steps == again.num_steps
    assert pieces.num_steps == 4


def test_until_layers_stop_to_learn_a_trial_has_its_stages_in_common(
    tmp_path: Path, spec: Any, tiny_backbone: Path
) -> None:
    said: dict[str, Any] = {"training.epochs": 3, "training.dropout": 0.1}
    runner = Runner(tmp_path / "work", spec, tiny_backbone)
    plain, stops = runner.plan(**said), runner.plan(**said, **{"training.freezing": "progressive"})
    assert [a.key == b.key for a, b in zip(plain.stages, stops.stages, strict=True)] == [
        True, False, False,
    ]  # fmt: skip
    assert runner.cost(stops)["cpu_seconds"] < runner.cost(plain)["cpu_seconds"]
    runner.advance(plain, 1)
    found = runner.advance(stops, 3)
    assert found.reused_steps == plain.boundaries[0]
    alone = Runner(tmp_path / "alone", spec, tiny_backbone)
    wanted = alone.advance(stops, 3)
    assert found.metrics == wanted.metrics
    left, right = runner.weights(found), alone.weights(wanted)
    assert left.keys() == right.keys() == runner.weights(runner.advance(plain, 3)).keys()
    assert all(torch.equal(t, right[n]) for n, t in left.items())
    head_alone = {**said, "training.trainable_layers": 0}
    asked = runner.plan(**head_alone, **{"training.freezing": "progressive"})
    assert [s.key for s in asked.stages] == [s.key for s in runner.plan(**head_alone).stages]


def test_what_an_earlier_run_trained_costs_a_later_one_nothing(
    tmp_path: Path, spec: Any, tiny_backbone: Path
) -> None:
    first = Runner(tmp_path / "work", spec, tiny_backbone)
    trained = first.advance(first.plan(**{"training.epochs": 1}), 1)
    assert "stage_tree" not in trained.saved
    later = Runner(tmp_path / "work", replace(spec, run_id="later"), tiny_backbone)
    found = later.advance(later.plan(**{"training.epochs": 1}), 1)
    assert found.reused_steps == found.num_steps
    assert found.saved["stage_tree"] == found.cpu_seconds > 0


def test_a_stage_that_was_not_asked_for_an_evaluators_value_is_trained_for_it(
    tmp_path: Path, spec: Any, tiny_backbone: Path
) -> None:
    other = asked_for(spec, {"f2": "report"})
    one, another = (Runner(tmp_path / "work", each, tiny_backbone) for each in (spec, other))
    keys = [each.plan().stages[0].key for each in (one, another)]
    assert len(set(keys)) == 2


def test_a_metric_that_every_stage_has_is_asked_for_without_training(
    tmp_path: Path, spec: Any, tiny_backbone: Path
) -> None:
    first = Runner(tmp_path / "work", spec, tiny_backbone)
    trained = first.advance(first.plan(**{"training.epochs": 1}), 1)
    assert trained.metrics.keys() >= {"accuracy", "macro_f1", "minority_recall"}
    picks = spec.config["evaluate"]["metric"]
    roles = {"minority_recall": {"at_least": 0.5}, picks: "objective", "size_bytes": "report"}
    later = Runner(tmp_path / "work", asked_for(spec, roles, "accuracy"), tiny_backbone)
    found = later.advance(later.plan(**{"training.epochs": 1}), 1)
    assert (found.key, found.reused_steps) == (trained.key, found.num_steps)
    assert later.num_steps == 0


def test_where_others_branch_off_each_epoch_can_be_gone_on_from(
    tmp_path: Path, spec: Any, tiny_backbone: Path
) -> None:
    search = {**spec.config["search"], "branch": True}
    branching = replace(spec, config={**spec.config, "search": search})
    whole = Runner(tmp_path / "whole", spec, tiny_backbone)
    runner = Runner(tmp_path / "branching", branching, tiny_backbone)
    four, two = (runner.plan(**{"training.epochs": n}) for n in (4, 2))
    found = runner.advance(four, 4)
    assert (found.reused_steps, runner.num_steps) == (0, 4)
    wanted = whole.weights(whole.advance(four, 4))
    assert all(torch.equal(t, wanted[n]) for n, t in runner.weights(found).items())
    assert runner.cost(two)["cpu_seconds"] == 0
    fewer = runner.advance(two, 2)
    assert (fewer.reused_steps, runner.num_steps) == (two.num_steps, 4), "nothing is trained again"
    assert fewer.saved["stage_tree"] == fewer.cpu_seconds > 0
    assert whole.advance(two, 2).reused_steps == 0, "without branches only the end is kept"


def asked_for(spec: Any, metrics: Any, *objectives: str) -> Any:
    evaluate = {**spec.config["evaluate"], "metrics": metrics}
    search = {**spec.config["search"], "objectives": objectives}
    config = {**spec.config, "evaluate": evaluate, "search": search}
    return replace(spec, run_id="later", config=config)


def test_trials_share_the_steps_that_are_equal_and_no_others(runner: Runner) -> None:
    def keys(**params: Any) -> list[str]:
        chain = runner.plan(**{f"training.{name}": value for name, value in params.items()})
        return [stage.key for stage in chain.stages]

    assert keys(epochs=2) == keys(epochs=4)[:2]
    assert keys(epochs=2)[0] != keys(epochs=2, dropout=0.2)[0]
    assert keys(epochs=2)[0] != keys(epochs=2, lr=1e-3)[0]
    assert keys(epochs=2, schedule="linear")[0] != keys(epochs=4, schedule="linear")[0]
    # Five epochs keep the peak for four: the first four of ten are the same, the fifth is not.
    decay = {"schedule": "warmup_stable_decay", "warmup_steps": 0, "warmup": 0}
    five, ten = keys(epochs=5, **decay), keys(epochs=10, **decay)
    assert five[:4] == ten[:4]
    assert five[4] != ten[4]
    # By share, a longer trial warms up for longer.
    assert keys(epochs=2, warmup_steps=0)[0] != keys(epochs=4, warmup_steps=0)[0]


def test_a_lost_or_damaged_state_costs_its_steps_and_changes_nothing(
    tmp_path: Path, spec: Any, tiny_backbone: Path
) -> None:
    runner = Runner(tmp_path, spec, tiny_backbone)
    chain = runner.plan(**{"training.epochs": 3})
    wanted = runner.weights(runner.advance(chain, 3))
    other = Runner(tmp_path / "other", spec, tiny_backbone)
    other.advance(chain, 1)
    second = other.advance(chain, 2)
    (state,) = Path(second.folder).glob("state/*/content.safetensors")
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    end = other.advance(chain, 3)
    assert end.reused_steps == chain.boundaries[0]
    assert all(torch.equal(t, wanted[n]) for n, t in other.weights(end).items())
    stages.prune(tmp_path / "other" / "stages", 0, but=())
    assert not list((tmp_path / "other" / "stages").glob("*/state"))
    assert other.advance(chain, 3).reused_steps == chain.num_steps, "weights of what is done stay"


def test_what_ended_itself_early_is_not_asked_to_go_on(runner: Runner) -> None:
    chain = runner.plan(**{"training.epochs": 8, "training.early_stopping": 1, "training.lr": 1e-9})
    found = runner.advance(chain, 8)
    assert found.is_stopped
    made = runner.num_steps
    assert made < 8
    again = runner.advance(chain, 8)
    assert again.is_stopped
    assert again.key == found.key
    assert runner.num_steps == made


def test_costs_grow_with_what_learns_and_fall_with_what_is_stored(runner: Runner) -> None:
    def cost(**params: Any) -> Any:
        chain = runner.plan(**{f"training.{name}": value for name, value in params.items()})
        return runner.cost(chain)

    whole, top = cost(trainable_layers=9), cost(trainable_layers=1)
    assert 0 < top["cpu_seconds"] < whole["cpu_seconds"] < cost(epochs=9)["cpu_seconds"]
    assert "encoded once" in top["why"][1]
    chain = runner.plan(**{"training.trainable_layers": 1})
    runner.advance(chain, len(chain.stages))
    stored = runner.cost(chain)
    assert (stored["cpu_seconds"], stored["why"]) == (0, ["it is stored"])
    other = cost(trainable_layers=1, lr=1e-3)
    assert "are kept" in other["why"][1]
    assert other["cpu_seconds"] < top["cpu_seconds"]
    assert cost(trainable_layers=9) == whole, "the machine is measured once per run"


def test_a_step_that_ends_no_stage_is_a_mistake_of_the_caller(runner: Runner) -> None:
    from autoglm.training.launcher import TrainingWorker

    chain = runner.plan(**{"training.epochs": 2})
    worker = TrainingWorker.__new__(TrainingWorker)
    with pytest.raises(ValueError, match="trained whole"):
        worker.advance(chain, chain.boundaries[0] + 1, cancel=threading.Event())


def test_of_two_workers_that_want_the_same_stage_one_trains_it(
    tmp_path: Path, spec: Any, tiny_backbone: Path
) -> None:
    first, second = (Runner(tmp_path / "work", spec, tiny_backbone) for _ in range(2))
    chain = first.plan(**{"training.epochs": 1})
    both, reached = threading.Barrier(2), {}

    def advance(name: str, runner: Runner) -> None:
        both.wait(60)
        reached[name] = runner.advance(chain, 1)

    threads = [
        threading.Thread(target=advance, args=item)
        for item in {"first": first, "second": second}.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first.num_steps + second.num_steps == 1
    assert reached["first"].key == reached["second"].key
    steps = chain.num_steps
    assert sorted(each.reused_steps for each in reached.values()) == [0, steps]


def test_a_worker_waits_for_the_stage_that_its_trial_goes_on_from(
    tmp_path: Path, spec: Any, tiny_backbone: Path
) -> None:
    first, second = (Runner(tmp_path / "work", spec, tiny_backbone) for _ in range(2))
    short, long = first.plan(**{"training.epochs": 1}), first.plan(**{"training.epochs": 2})
    assert short.stages[0].key == long.stages[0].key
    lock = stages.lock_of(tmp_path / "work" / "stages", short.stages[0])
    answers: list[Progress] = []
    thread = threading.Thread(target=lambda: answers.append(second.advance(long, 2)))
    with alone(lock):  # as the worker that trains it
        thread.start()
        thread.join(1)
        assert thread.is_alive()
        assert second.num_steps == 0
    first.advance(short, 1)
    thread.join()
    assert answers[0].step == long.num_steps
    assert first.num_steps + second.num_steps in {2, 3}  # who comes first is not said here


def test_states_that_another_worker_goes_on_from_are_not_let_go(
    runner: Runner, spec: Any, tiny_backbone: Path
) -> None:
    chain = runner.plan(**{"training.epochs": 2})
    runner.advance(chain, 1)
    folder = runner.workspace / "stages"
    state = stages.states_of(folder / chain.stages[0].key)
    with beside(stages.lock_of(folder, chain.stages[0])):
        stages.prune(folder, 0, but=())
        assert state.newest() is not None
    stages.prune(folder, 0, but=())
    assert state.newest() is None


def test_folds_learn_from_other_rows_and_share_what_frozen_layers_say(runner: Runner) -> None:
    frozen = {"training.epochs": 1, "training.trainable_layers": 1}
    whole = runner.plan(**frozen)
    folds = [runner.plan(**frozen, **{FOLD: f"{number}/3"}) for number in (1, 2, 3)]
    assert len({chain.key for chain in (whole, *folds)}) == 4
    reached = [runner.advance(chain, 1) for chain in folds]
    encoded = [e["encoded"] for e in runner.events if "encoded" in e]
    assert encoded[0] > 0
    assert not any(encoded[1:])
    weights = [runner.weights(each) for each in reached]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert runner.advance(folds[0], 1).reused_steps == folds[0].num_steps


def test_a_trial_that_may_be_the_only_one_keeps_no_states_for_others(
    tmp_path: Path, spec: Any, tiny_backbone: Path
) -> None:
    space = {"trainable_layers": {"choice": [0, 1]}}
    asking = {**spec.config, "search": {**spec.config["search"], "space": space}}
    kept: dict[bool, int] = {}
    values: dict[bool, Any] = {}
    for is_alone in (False, True):
        workspace = tmp_path / str(is_alone)
        runner = Runner(workspace, replace(spec, config=asking), tiny_backbone)
        chain = runner.plan(**{"training.epochs": 1, "training.trainable_layers": 0})
        values[is_alone] = runner.advance(chain, 1, is_alone=is_alone).metrics
        kept[is_alone] = len(list(workspace.rglob("about.json")))
    assert kept[True] < kept[False]
    assert values[True] == values[False]


def test_neither_folds_nor_what_came_before_the_study_are_trials_of_their_own(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoglm.training.launcher import TrainingWorker

    alone: list[bool] = []
    progress = to_json(runner.advance(runner.plan(**{"training.epochs": 1}), 1))
    monkeypatch.setattr(
        TrainingWorker, "_call", lambda *_call, **asked: alone.append(asked["is_alone"]) or progress
    )
    worker = TrainingWorker.__new__(TrainingWorker)

    def advance(lr: float, **more: str) -> None:
        chain = runner.plan(**{"training.epochs": 1, "training.lr": lr}, **more)
        worker.advance(chain, chain.num_steps, cancel=threading.Event())

    worker.begin_study(num_alone=1)
    advance(1e-3)  # a probe
    worker.begin_study(num_alone=1)
    for fold in (1, 2, 3):
        advance(2e-3, **{FOLD: f"{fold}/3"})
    advance(3e-3)
    assert alone == [True, True, True, True, False]


def test_the_workers_threads_wait_as_its_user_says() -> None:
    assert _environment({})["GOMP_SPINCOUNT"] == SPINS
    assert _environment({"GOMP_SPINCOUNT": "7"})["GOMP_SPINCOUNT"] == "7"
    assert "GOMP_SPINCOUNT" not in _environment({"OMP_WAIT_POLICY": "active"})
