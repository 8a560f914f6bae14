"""What a trial is, by content; and the folder in which a trained stage is kept. No torch."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoglm.contracts.record import digest
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.stage_chain import Stage, StageChain

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"
# In a worker's workspace: what its runs have in common.
GRAPHS = "graphs"
# What does not change which weights come out.
WITHOUT_EFFECT = {
    "callbacks",
    "checkpoint_budget",
    "checkpoint_every",
    "checkpoint_steps",
    "device",
    "gradient_checkpointing",
    "log_steps",
    "threads",
}


def settings_of(spec: RunSpec, params: Mapping[str, Any]) -> dict[str, Any]:
    """The sections `model` and `training` with the trial's parameters laid over them."""
    tree = copy.deepcopy({name: spec.config[name] for name in ("model", "training")})
    for key, value in params.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[name] = value
    return tree


def plan(spec: RunSpec, params: Mapping[str, Any], *, start: str) -> StageChain:
    """The chain of a trial: one stage. `start` is the digest of the weights it starts from."""
    settings = settings_of(spec, params)
    training = settings["training"]
    train_rows = spec.dataset.split_rows["train"]
    num_steps = int(training["epochs"]) * math.ceil(train_rows / int(training["batch_size"]))
    learning = {k: v for k, v in training.items() if k not in WITHOUT_EFFECT}
    data = {"digest": spec.dataset.content_digest, "max_length": spec.config["data"]["max_length"]}
    metric = spec.config["evaluate"]["metric"]
    content = [start, settings["model"], learning, data, metric, num_steps, spec.seed]
    key = digest(*content)
    stage = Stage(
        key=key,
        parent=start,
        settings=settings,
        num_steps=num_steps,
        seed=int(digest(spec.seed, key, size=4), 16),
        data_order=digest(spec.seed, data, size=8),
    )
    return StageChain(project=spec.project, params=dict(params), stages=(stage,))


def stored(folder: Path) -> dict[str, Any] | None:
    """The manifest of a whole stage; None when it is absent or damaged (it is trained again)."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        with (folder / WEIGHTS).open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
    return manifest if manifest.get("sha256") == actual else None


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
