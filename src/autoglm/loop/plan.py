"""What a run will cost, said before it starts."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm.config.provenance import flat
from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.cores import cores
from autoglm.errors import StorageError
from autoglm.loop.run_to_candidate import most_trials
from autoglm.modeling.backbone_ref import count_tokens, resolve_backbone
from autoglm.project import Project

SAMPLED_TEXTS = 400
# A trial costs at most three forward passes over its rows (forward once, backward twice).
PASSES = 3
# Where the first layer of `conv` looks at an image of 28 by 28; the layers behind it see less.
CONV_PIXELS = 784


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """`minutes` is an upper estimate: the search ends at its budget, cached prefixes cost less."""

    rows: int
    train_rows: int
    tokens: int
    trials: int
    minutes: float
    disk_bytes: int
    backbone: str


def make_plan(dataset: DatasetVersion, project: Project) -> Plan:
    """Estimate from a sample of the texts and the machine's measured matrix speed.

    Raises: ModelError for a backbone that is not there; SearchError for a wrong space;
    StorageError storage.over_budget when the run would not fit.
    """
    from autoglm.datasets.dataset_version import load_rows

    settings = project.settings
    trials = most_trials(settings, flat(settings))
    texts = load_rows(dataset, "train").inputs
    sample = texts[:: max(1, len(texts) // SAMPLED_TEXTS)][:SAMPLED_TEXTS]
    per_text, (num_params, weights_bytes) = _measure(dataset, sample, project)
    tokens = int(per_text * dataset.rows)
    flops = 2.0 * num_params * per_text * len(texts) * PASSES * settings.training.epochs
    speed = _flops_per_second(settings.training.threads or cores())
    search_seconds = min(trials * flops / speed, settings.search.budget.total_seconds())
    held_out = dataset.rows - len(texts)
    release_requests = settings.release.min_requests * sum(100 / s for s in settings.release.steps)
    other_flops = 2.0 * num_params * per_text * (held_out + release_requests)
    return Plan(
        rows=dataset.rows,
        train_rows=len(texts),
        tokens=tokens,
        trials=trials,
        minutes=round((search_seconds + other_flops / speed + 20) / 60, 1),
        # Weights and graph of the version, the same again while it is put together.
        disk_bytes=4 * weights_bytes,
        backbone=settings.model.backbone,
    )


def _measure(
    dataset: DatasetVersion, sample: Sequence[Any], project: Project
) -> tuple[float, tuple[int, int]]:
    """Tokens (or patches) of a row on average, and the backbone's size (see `_size`)."""
    model = project.settings.model
    if model.backbone == "conv":
        return CONV_PIXELS, (model.conv.channels**2 * model.conv.kernel_size**2, 10**6)
    rows = [row if isinstance(row, str) else " ".join(row) for row in sample]
    if model.backbone == "recurrent":
        sizes = model.recurrent
        weights = 4 * sizes.hidden_size * (sizes.hidden_size + sizes.embedding_size)
        words = sum(len(row.split()) for row in rows) / len(rows)
        return words, (weights * sizes.num_layers * (1 + sizes.bidirectional), 10**7)
    backbone = resolve_backbone(model.backbone, project.folder)
    if dataset.form.reads == "image":
        config = json.loads((backbone / "config.json").read_text())
        side = int(config.get("image_size", 224)) // int(config.get("patch_size", 16))
        return 1 + side * side, _size(backbone)
    max_length = project.settings.data.max_length
    return sum(count_tokens(backbone, rows, max_length)) / len(rows), _size(backbone)


def _size(backbone: Path) -> tuple[int, int]:
    """Parameters that work per token (embeddings only look up), and bytes of all weights."""
    config = json.loads((backbone / "config.json").read_text())
    hidden = int(config.get("hidden_size", 384))
    layers = int(config.get("num_hidden_layers", 6))
    inner = int(config.get("intermediate_size", 4 * hidden))
    vocabulary = int(config.get("vocab_size", 30_000))
    per_token = layers * (4 * hidden * hidden + 2 * hidden * inner)
    return per_token, 4 * (per_token + hidden * vocabulary)


def _flops_per_second(threads: int) -> float:
    """Best of five small matrix products on one thread, times `threads`. Several threads would wait
    for each other, and where a core is busy, six times as long as the product takes.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    left, right = np.ones((384, 384), np.float32), np.ones((384, 1536), np.float32)
    with threadpool_limits(1, user_api="blas"):
        best = min(_seconds(left, right) for _ in range(5))
    # A training step reaches about half of a bare product's speed.
    return 0.5 * threads * 2 * 384 * 384 * 1536 / best


def _seconds(left: object, right: object) -> float:
    started = time.perf_counter()
    left @ right  # type: ignore[operator]
    return max(time.perf_counter() - started, 1e-6)


def check_room(plan: Plan, project: Project) -> None:
    """Raises: StorageError storage.over_budget, storage.full."""
    used = sum(
        (Path(root) / name).stat().st_size
        for root, _, names in os.walk(project.state)
        for name in names
        if (Path(root) / name).is_file()
    )
    budget = project.settings.storage.budget
    free = shutil.disk_usage(project.state).free
    if used + plan.disk_bytes > budget:
        raise StorageError(
            f"{project.state} holds {used:,} bytes; this run needs {plan.disk_bytes:,} more and"
            f" storage.budget is {budget:,}.",
            code="storage.over_budget",
            next_step="Raise storage.budget or lower storage.keep_versions.",
        )
    if free < plan.disk_bytes:
        raise StorageError(
            f"the disk has {free:,} bytes left; this run needs {plan.disk_bytes:,}.",
            code="storage.full",
            next_step="Free disk space.",
        )
