"""Prompts and answers as the trainer takes them, and what a model in a folder gives to answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from autoglm.contracts.task import TextScore
from autoglm.modeling.causal_lm import load_causal_lm, own_attention
from autoglm.modeling.chat import Chat
from autoglm.reuse.prefix_cache import PrefixCache
from autoglm.training.data import Encoded
from autoglm.training.forward import Forward
from autoglm.training.tasks import CausalLM


def encode_turns(
    chat: Chat, prompts: Sequence[str], answers: Sequence[str], *, num_train: int
) -> Encoded:
    turns = chat.turns(prompts, answers)
    return Encoded(
        ids=[turn.ids for turn in turns],
        targets=[torch.tensor(turn.answer) for turn in turns],
        num_train=num_train,
        label_names=(),
        firsts=[turn.first for turn in turns],
    )


@torch.no_grad()
def score_folder(
    folder: Path,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    max_length: int,
    stop: Callable[[], None],
) -> list[TextScore]:
    """Of each answer, in order. `stop` is called between batches.

    Raises: those of `load_causal_lm` and `Chat`.
    """
    data = encode_turns(Chat(folder, max_length), prompts, answers, num_train=0)
    model = load_causal_lm(folder, {"attention": own_attention(folder)}, max_length=max_length)
    task: Any = CausalLM((), {"label_smoothing": 0.0})
    forward = Forward(
        model,
        data.ids,
        num_frozen=0,
        cache=PrefixCache(0),
        cache_key="",
        stop=stop,
        firsts=data.firsts,
    )
    found: dict[int, TextScore] = {}
    for rows in forward.in_batches(data.validation):
        stop()
        batch = data.batch(rows)
        judged = forward.judged(rows, batch["labels"], task.judge)
        row_of = torch.tensor([i for i in rows for _ in data.targets[i]])
        found |= zip(rows, task.predict(judged, {**batch, "row_of": row_of}), strict=True)
    return [found[i] for i in data.validation]
