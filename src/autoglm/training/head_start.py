"""Where a head starts: from the closed form on what the backbone says, before any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification
from autoglm.training.data import IGNORED, Encoded
from autoglm.training.forward import Forward

# What a head for tokens starts from: enough to find 400 directions, little enough to solve.
HEAD_TOKENS, HEAD_ROWS = 30_000, 64


def start_head(
    model: AutoGLMForSequenceClassification,
    forward: Forward,
    data: Encoded,
    task: Any,
    stop: Callable[[], None],
) -> None:
    """Ridge regression on what the backbone says at the start, where the head is linear; what the
    head knew before stays.
    """
    head = model.classifier
    if not isinstance(head, nn.Linear) or not hasattr(task, "ridge"):
        return
    new = sorted({*range(head.out_features)} - {*model.known_outputs})
    if not new:
        return
    with torch.no_grad():
        # On the CPU: it wants double precision, which not every device has.
        known = (x.cpu() for x in _known(model, forward, data, task, stop))
        weight, bias = (x.to(head.weight.device) for x in task.ridge(*known))
        head.weight[new] = weight[new]
        head.bias[new] = bias[new]


def _known(
    model: AutoGLMForSequenceClassification,
    forward: Forward,
    data: Encoded,
    task: Any,
    stop: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Features and targets of the training rows; of tokens, of the first rows that hold
    `HEAD_TOKENS`.
    """
    if not task.is_per_token:
        assert isinstance(data.targets, Tensor), "an answer per row"
        known = slice(0, data.num_train)
        return forward.start_features()[known], data.targets[known]
    model.eval()
    features, targets, left = [], [], HEAD_TOKENS
    for start in range(0, data.num_train, HEAD_ROWS):
        rows = range(start, min(start + HEAD_ROWS, data.num_train))
        longest_first = sorted(rows, key=lambda i: -len(data.ids[i]))
        labels = data.batch(longest_first)["labels"]
        is_word = labels != IGNORED
        features.append(forward.features(longest_first)[is_word])
        targets.append(labels[is_word])
        left -= len(labels)
        stop()
        if left <= 0:
            break
    return torch.cat(features), torch.cat(targets)
