"""Attention, optimizer, schedule, callback and head of one's own, for `imports: [parts.py]`."""

from __future__ import annotations

import json
import math
import sys

import torch
from torch import nn

from autoglm import register

SHARPNESS = 1.2


@register("attention", "sharp")
def sharp(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Dense attention with sharper weights; (batch, heads, length, size) in."""
    scores = query @ key.mT * SHARPNESS * (scaling or 1 / math.sqrt(query.shape[-1]))
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


sharp.is_sparse = True  # not dense attention, and not meant to be: the probe need not compare


@register("optimizer", "sign")
class Sign(torch.optim.Optimizer):
    """Steps of one size, in the direction of the averaged gradient."""

    def __init__(self, groups, *, lr):
        super().__init__([dict(group) for group in groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in (p for p in group["params"] if p.grad is not None):
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 0.1)
                weight.add_(average.sign(), alpha=-group["lr"])


@register("schedule", "square")
def square(step, num_steps):
    return (1 - step / num_steps) ** 2


@register("callback", "diary")
class Diary:
    """Says the loss of each line of the record, where the worker's log lies."""

    def on_event(self, event):
        if event["kind"] == "training":
            print(json.dumps({k: event[k] for k in ("step", "train_loss")}), file=sys.stderr)


@register("head", "narrow")
def narrow(hidden_size, num_labels):
    return nn.Sequential(nn.Linear(hidden_size, 8), nn.Tanh(), nn.Linear(8, num_labels))
