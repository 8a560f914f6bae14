"""A tiny real encoder and rows that it can learn, made in milliseconds; no file is read."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from transformers import AutoModel, BertConfig

from autoglm.modeling.modeling_autoglm import AutoGLMConfig, AutoGLMForSequenceClassification
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.reuse.prefix_cache import PrefixCache
from autoglm.training import parts, tasks
from autoglm.training.config import TrainingConfig
from autoglm.training.data import Encoded
from autoglm.training.decisions import Decisions
from autoglm.training.trainer import Trainer
from autoglm.training.trial import Pause, Trained

LABELS = ("a", "b", "c")


def backbone(config: Any = None, **more: Any) -> Any:
    torch.manual_seed(5)
    config = config or BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
    )
    attention = "eager" if config.model_type == "deberta-v2" else "sdpa"
    made = AutoModel.from_config(copy.deepcopy(config), attn_implementation=attention, **more)
    return made.eval()


def model(
    num_outputs: int = 3, *, pooling: str = "mean", head: str = "linear", config: Any = None
) -> AutoGLMForSequenceClassification:
    body = backbone(config)
    made = AutoGLMConfig(
        backbone_config=body.config.to_diff_dict(),
        pooling=pooling,
        head=head,
        num_labels=num_outputs,
    )
    return AutoGLMForSequenceClassification(made, backbone=body).eval()


def ids(count: int, *, seed: int = 0, longest: int = 12) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(1, 60, (n,), generator=draw).tolist() for n in lengths]


def rows(count: int = 60, num_train: int = 48) -> Encoded:
    """The label is told by most of a row's tokens."""
    draw = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 3, (count,), generator=draw)
    encoded = []
    for label, row in zip(targets.tolist(), ids(count), strict=True):
        told = torch.rand(len(row), generator=draw) < 0.8
        encoded.append(
            [
                t - t % 3 + label if t > 2 and is_told else t
                for t, is_told in zip(row, told.tolist(), strict=True)
            ]
        )
    return Encoded(ids=encoded, targets=targets, num_train=num_train, label_names=LABELS)


def settings(**more: Any) -> dict[str, Any]:
    plain = {"epochs": 5, "batch_size": 8, "trainable_layers": 9, "lr": 3e-3, "threads": 1}
    # What is measured without being kept could be decided otherwise the next time.
    return {**asdict(TrainingConfig()), **plain, "precision": "fp32", **more}


def trainer(
    data: Encoded | None = None,
    *,
    start: AutoGLMForSequenceClassification | None = None,
    task: Any = None,
    metric: str = "accuracy",
    metrics: Sequence[str] = (),
    checkpoints: Checkpoints | None = None,
    decisions: Decisions | None = None,
    structure: StructureConfig | None = None,
    events: list[Any] | None = None,
    algorithms: Sequence[Any] = (),
    callbacks: Sequence[Any] = (),
    cache: PrefixCache | None = None,
    **more: Any,
) -> Trainer:
    chosen, data = settings(**more), data or rows()
    assert set(chosen) == set(settings()), "a key that nobody reads"
    task = task or tasks.Classification(data.label_names, chosen)
    heard: list[Any] = events if events is not None else []
    return Trainer(
        start or model(len(data.label_names)),
        data,
        chosen,
        task=task,
        metric=metric,
        metrics=metrics,
        seed=7,
        cache=cache or PrefixCache(2**24),
        cache_key="toy",
        on_event=heard.append,
        checkpoints=checkpoints,
        decisions=decisions,
        structure=structure,
        algorithms=[*algorithms, *parts.algorithms(chosen)],
        callbacks=callbacks,
    )


def train(pause: Pause | None = None, **more: Any) -> Trained:
    return trainer(**more).train(threading.Event(), pause=pause)
