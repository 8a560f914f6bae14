"""What a trial is, by content; and the folder in which a trained stage is kept. No torch."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm.contracts.record import digest
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.stage_chain import FOLD, Stage, StageChain
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.recovery.file_lock import alone_if_free
from autoglm.training.schedules import rate_at

if TYPE_CHECKING:
    from autoglm.training.trial import Trained

WEIGHTS, MANIFEST, STATE = "weights.safetensors", "manifest.json", "state"
# In a worker's workspace: what its runs have in common.
STAGES, GRAPHS = "stages", "graphs"
# What does not change which weights come out.
WITHOUT_EFFECT = {
    "callbacks",
    "checkpoint_budget",
    "checkpoint_every",
    "checkpoint_steps",
    "gradient_checkpointing",
    "log_steps",
    "threads",
}

# What decides nothing but the rates of the steps and the layers that learn in them, or is told by
# what it comes to.
TOLD = {"epochs", "freezing", "rehearsal", "warmup", "warmup_steps"}


@dataclass(frozen=True, kw_only=True)
class StoredStage:
    """The first `depth` stages of a chain, as they lie on disk."""

    depth: int
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def is_stopped(self) -> bool:
        """Training ended itself here: there are no stages behind it."""
        return bool(self.manifest["is_stopped"])


def is_reached(known: StoredStage | None, depth: int) -> bool:
    return known is not None and (known.depth == depth or known.is_stopped)


def settings_of(spec: RunSpec, params: Mapping[str, Any]) -> dict[str, Any]:
    """The sections `model` and `training` with the trial's parameters laid over them."""
    tree = copy.deepcopy({name: spec.config[name] for name in ("model", "training")})
    for key, value in params.items():
        if key == FOLD:
            continue
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[name] = value
    return tree


def plan(
    spec: RunSpec,
    params: Mapping[str, Any],
    *,
    start: str,
    schedule: Callable[[int, int], float],
    precision: str,
    device: str,
    num_train: int,
    metrics: Sequence[str] = (),
    frozen: Sequence[int] = (),
    rehearsed: str = "",
) -> StageChain:
    """The chain of a trial: a stage per epoch. `start` is the digest of the weights it starts from,
    `num_train` counts the rows it learns from, `metrics` (in order) are told of it beside the one
    that picks and those that every stage has; `frozen` layers do not learn, epoch by epoch;
    `rehearsed` names the rows that are learnt from where these are not all (training.rehearsal).

    Two trials share a stage where all that went into its weights is equal: not the number of
    epochs is named, but the rate of each step. All trials of a study see the rows in one order and
    draw from one seed (docs/decisions/0009).
    """
    settings = settings_of(spec, params)
    training = settings["training"]
    training["precision"], training["device"] = precision, device
    if FOLD in params:
        settings["fold"] = params[FOLD]
    per_epoch = math.ceil(num_train / int(training["batch_size"]))
    num_steps = int(training["epochs"]) * per_epoch
    data = {"digest": spec.dataset.content_digest, "max_length": spec.config["data"]["max_length"]}
    # What a stage was not asked for it cannot tell later.
    metric = [spec.config["evaluate"]["metric"], *metrics]
    code = [[file.name, file.digest] for file in spec.imports]
    versions = [version(name) for name in ("torch", "transformers", "open-autoglm")]
    learning = _learning(spec, params, settings, num_steps=num_steps, rehearsed=rehearsed)
    key = digest(start, settings["model"], learning, data, metric, spec.seed, code, versions)
    stages = []
    for epoch, first in enumerate(range(0, num_steps, per_epoch)):
        rates = [rate_at(first + n, num_steps, training, schedule) for n in range(per_epoch)]
        # A layer that has stopped to learn changes what comes behind, not what was before.
        stopped = [frozen[epoch]] if frozen and frozen[epoch] > frozen[0] else []
        parent, key = key, digest(key, rates, *stopped)
        stages.append(
            Stage(
                key=key,
                parent=parent,
                settings=settings,
                num_steps=per_epoch,
                seed=int(digest(spec.seed, "trials", size=4), 16),
                data_order=digest(spec.seed, data, size=8),
            )
        )
    return StageChain(project=spec.project, params=dict(params), stages=tuple(stages))


def _learning(
    spec: RunSpec,
    params: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    num_steps: int,
    rehearsed: str,
) -> dict[str, Any]:
    """How weights are learnt, the rates of the steps apart, in what names a stage."""
    training = settings["training"]
    learning = {k: v for k, v in training.items() if k not in WITHOUT_EFFECT | TOLD}
    if rehearsed:
        learning["rehearsed"] = rehearsed
    if "fold" in settings:
        learning["fold"] = settings["fold"]
    if training["algorithms"]:
        learning["num_steps"] = num_steps  # they are told
    if training["memory_budget"]:
        learning["run"] = spec.run_id  # what was measured in one run decides in no other
    if not spec.config["cache"]["stages"]:
        learning["trial"] = dict(params)
    return learning


def manifest_of(
    trained: Trained, before: StoredStage | None, *, payer: str, seconds: float
) -> dict[str, Any]:
    """What is told of a stage: with what the stages `before` it paid, saved and took at most, and
    the CPU-seconds that `payer` has paid for this one.
    """
    known: Mapping[str, Any] = {} if before is None else before.manifest
    paid, saved, peak = (known.get(name, {}) for name in ("paid", "saved", "peak"))
    return {
        "metrics": trained.metrics,
        "num_steps": trained.num_steps,
        "best_epoch": trained.best_epoch,
        "is_stopped": trained.is_stopped,
        "peak": {name: max(n, peak.get(name, 0)) for name, n in trained.peak.items()},
        "paid": {**paid, payer: paid.get(payer, 0.0) + seconds},
        "saved": {name: saved.get(name, 0.0) + s for name, s in trained.saved.items()},
    }


def states_of(folder: Path) -> Checkpoints:
    """What training was at the end of the stage in `folder`, if something can follow."""
    return Checkpoints(folder / STATE, keep=1, max_bytes=0)


def lock_of(folder: Path, stage: Stage) -> Path:
    """Held alone by the worker that trains the stage, beside others by those that go on from it."""
    return _lock(folder, stage.key)


def _lock(folder: Path, key: str) -> Path:
    return folder / f".{key}.lock"


def prune(folder: Path, max_bytes: int, *, but: Collection[str]) -> None:
    """Let the oldest states go until they fit; a stage without one is trained again when something
    is to follow it. Stages with a key in `but` keep theirs, and those that another worker holds.
    """
    found = {path: _age_and_size(path) for path in folder.glob(f"*/{STATE}")}
    sizes = {path: size for path, (_age, size) in found.items()}
    for path in sorted(found, key=lambda path: found[path]):
        if sum(sizes.values()) <= max_bytes:
            return
        if path.parent.name in but:
            continue
        with alone_if_free(_lock(folder, path.parent.name)) as is_free:
            if is_free:
                shutil.rmtree(path, ignore_errors=True)
                del sizes[path]


def let_go(folder: Path, max_bytes: int, *, but: Collection[str] = ()) -> int:
    """Delete whole stages, the oldest first, until the others fit; returns how many. Only between
    studies: what a study goes on from, or exports, is trained again where it is gone.
    """
    paths = {path.parent for path in folder.glob(f"*/{MANIFEST}")}
    found = {path: _age_and_size(path) for path in paths}
    left, num = sum(size for _age, size in found.values()), 0
    for path in sorted(found, key=lambda path: found[path]):
        if left <= max_bytes:
            break
        if path.name in but:
            continue
        left, num = left - found[path][1], num + 1
        shutil.rmtree(path, ignore_errors=True)
        for beside in (path.with_name(f"{path.name}.jsonl"), _lock(folder, path.name)):
            beside.unlink(missing_ok=True)
    return num


def size_of(folder: Path) -> tuple[int, int]:
    """How many stages, and bytes, of whole ones."""
    sizes = [_age_and_size(path.parent)[1] for path in folder.glob(f"*/{MANIFEST}")]
    return len(sizes), sum(sizes)


def _age_and_size(path: Path) -> tuple[float, int]:
    """Modification time and bytes; of what another worker lets go meanwhile, nothing."""
    with contextlib.suppress(OSError):
        files = [f for f in path.rglob("*") if f.is_file()]
        return path.stat().st_mtime, sum(f.stat().st_size for f in files)
    return 0.0, 0


def stored(folder: Path) -> dict[str, Any] | None:
    """The manifest of a whole stage; None when it is absent or damaged (it is trained again)."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        with (folder / WEIGHTS).open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
    is_whole = isinstance(manifest, dict) and manifest.get("sha256") == actual
    return manifest if is_whole else None


def store(staging: Path, folder: Path, facts: Mapping[str, Any]) -> None:
    """Give `staging` (which holds the weights) its manifest and its name: the rename commits."""
    with (staging / WEIGHTS).open("rb") as stream:
        sha = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    with (staging / MANIFEST).open("w") as manifest:
        json.dump({**facts, "sha256": sha}, manifest)
        manifest.flush()
        os.fsync(manifest.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
