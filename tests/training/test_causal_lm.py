"""Answers are learnt, prompts are read: where the head is asked, what the loss is, what LoRA adds."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from autoglm.contracts.task import TextScore
from autoglm.errors import CancelledError, ModelError
from autoglm.modeling.adapters import load_trained
from autoglm.modeling.causal_lm import export_causal_lm, load_causal_lm
from autoglm.modeling.chat import Chat
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.reuse.prefix_cache import PrefixCache
from autoglm.training.data import Encoded
from autoglm.training.forward import Forward
from autoglm.training.tasks import CausalLM
from autoglm.training.texts import encode_turns, score_folder
from training import toy, toy_lm

PLAIN: dict[str, Any] = {"attention": "sdpa"}
TASK = CausalLM((), {"label_smoothing": 0.0})
LORA = StructureConfig(lora_rank=4, lora_alpha=16.0)


def rows(folder: Path, count: int = 60, num_train: int = 48) -> Encoded:
    return encode_turns(Chat(folder, 32), *toy_lm.pairs(count), num_train=num_train)


def trainer(folder: Path, data: Encoded | None = None, **more: Any) -> Any:
    return toy.trainer(
        data or rows(folder),
        start=load_causal_lm(folder, PLAIN),
        task=TASK,
        metric="negative_loss",
        **{"lr": 1e-2, **more},
    )


def forward_of(folder: Path, data: Encoded) -> Any:
    return Forward(
        load_causal_lm(folder, PLAIN), data.ids, num_frozen=0, cache=PrefixCache(0), cache_key="",
        stop=lambda: None, firsts=data.firsts,
    )  # fmt: skip


def losses(forward: Any, data: Encoded, order: list[int]) -> list[Tensor]:
    per_token = TASK.judge(forward.outputs(order), data.batch(order)["labels"])[:, 0]
    return [part.mean() for part in per_token.split([len(data.targets[i]) for i in order])]


@pytest.mark.parametrize("kind", toy_lm.KINDS)
def test_the_loss_of_a_row_is_that_of_its_answer_packed_or_padded(
    tmp_path: Path, kind: str
) -> None:
    folder = toy_lm.folder(tmp_path / "m", kind)
    data = rows(folder)
    order = sorted(range(12), key=lambda i: -data.lengths[i])
    packed, padded = forward_of(folder, data), forward_of(folder, data)
    assert packed._body.why_padded == ""
    padded._body.why_padded = "asked for"
    padded._body._whole.set_attn_implementation("sdpa")
    found, wanted = losses(packed, data, order), losses(padded, data, order)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for i, one, other in zip(order, found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-5)
        # transformers' own: the prompt's labels are -100.
        ids = torch.tensor([[*data.ids[i], int(data.targets[i][-1])]])
        labels = ids.clone()
        labels[:, : ids.shape[1] - len(data.targets[i])] = -100
        assert torch.allclose(one, whole(input_ids=ids, labels=labels).loss, rtol=1e-5)


def test_another_answer_token_is_another_loss(tmp_path: Path) -> None:
    folder = toy_lm.folder(tmp_path / "m")
    data = rows(folder)
    with torch.no_grad():
        (before,) = losses(forward_of(folder, data), data, [0])
        data.targets[0][0] = (data.targets[0][0] + 1) % 40
        (after,) = losses(forward_of(folder, data), data, [0])
    assert abs(float(before - after)) > 1e-4


def test_the_head_is_asked_at_answers_only(tmp_path: Path) -> None:
    folder = toy_lm.folder(tmp_path / "m")
    data = rows(folder)
    asked: list[int] = []

    def watch(_module: Any, inputs: Any, _output: Any) -> None:
        asked.append(len(inputs[0]))

    made = trainer(folder, data, epochs=2)
    made._model.classifier.register_forward_hook(watch)
    made.train(threading.Event())
    learnt = sum(len(target) for target in data.targets[:48])
    held_out = sum(len(target) for target in data.targets[48:])
    assert sum(asked) == 2 * learnt + 3 * held_out


def test_parts_of_a_batch_weigh_by_their_answers(tmp_path: Path) -> None:
    folder = toy_lm.folder(tmp_path / "m")
    whole, parts = (
        trainer(folder, epochs=1, accumulation=n).train(threading.Event()) for n in (1, 3)
    )
    for name, weight in whole.weights.items():
        assert torch.allclose(weight, parts.weights[name], atol=2e-4), name


@pytest.mark.parametrize("is_tied", [False, True])
def test_what_learns_is_said_by_layers_and_adapters(tmp_path: Path, is_tied: bool) -> None:
    folder = toy_lm.folder(tmp_path / "m", is_tied=is_tied)

    def learning(**more: Any) -> set[str]:
        made = trainer(folder, **more)._model
        return {n for n, p in made.named_parameters() if p.requires_grad}

    top = learning(trainable_layers=1)
    assert {n for n in top if "layers.0." in n or "embed" in n} == set()
    assert ("classifier.weight" in top) != is_tied
    everything = learning(trainable_layers=9)
    assert "backbone.embed_tokens.weight" in everything
    assert all("lora_" in name for name in learning(structure=LORA))
    if is_tied:
        with pytest.raises(ModelError) as caught:
            learning(trainable_layers=0)
        assert caught.value.code == "model.nothing_learns"
    else:
        assert learning(trainable_layers=0) == {"classifier.weight"}


@pytest.mark.parametrize("kind", ["llama", "glm"])
def test_adapters_learn_and_are_merged(tmp_path: Path, kind: str) -> None:
    source = toy_lm.folder(tmp_path / "m", kind, is_tied=True)
    data, events = rows(source), []
    trained = trainer(source, data, structure=LORA, lr=3e-2, events=events).train(threading.Event())
    scores = [e["eval_negative_loss"] for e in events if e["kind"] == "evaluation"]
    assert trained.metrics["negative_loss"] > scores[0] + 0.15
    model = load_causal_lm(source, PLAIN)
    load_trained(model, LORA, trained.weights, adapter=tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    done = export_causal_lm(
        model, source, tmp_path / "out", max_length=32, pad_id=0,
        end_id=Chat(source, 32).end_id, rows=data.ids[48:], task="causal-lm",
    )  # fmt: skip
    prompts, answers = toy_lm.pairs(60)
    held_out = score_folder(
        Path(done.folder), prompts[48:], answers[48:], max_length=32, stop=lambda: None
    )
    loss = sum(score.nll for score in held_out) / sum(score.tokens for score in held_out)
    assert loss == pytest.approx(-trained.metrics["negative_loss"], abs=1e-5)


def test_scores_are_sums_over_each_rows_tokens() -> None:
    outputs = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    batch = {"labels": torch.tensor([0, 0, 0]), "row_of": torch.tensor([4, 4, 1])}
    judged = TASK.judge(outputs, batch["labels"])
    first, second = TASK.predict(judged, batch)
    assert (first.tokens, first.hits, second.tokens, second.hits) == (2, 1, 1, 1)
    assert first.nll == pytest.approx(float(-outputs.log_softmax(-1)[:2, 0].sum()))
    assert TASK.truth(batch) == [TextScore(0.0, 2, 2), TextScore(0.0, 1, 1)]
    scores = TASK.scores(judged, batch)
    assert scores["token_accuracy"] == pytest.approx(2 / 3)
    assert scores["loss"] == -scores["negative_loss"] == pytest.approx(float(judged[:, 0].mean()))


@pytest.mark.parametrize("structure", [StructureConfig(), LORA])
def test_stopped_anywhere_it_comes_back_to_the_same_bytes(
    tmp_path: Path, structure: StructureConfig
) -> None:
    folder = toy_lm.folder(tmp_path / "m", is_tied=True)
    more: dict[str, Any] = {"structure": structure, "epochs": 2, "ema": 0.9}
    wanted = trainer(folder, **more).train(threading.Event())
    stop = threading.Event()

    class StopAt:
        def apply(self, moment: str, state: Any) -> None:
            if moment == "step" and state.step == 8:
                stop.set()

    kept = Checkpoints(tmp_path / "kept", keep=2, max_bytes=2**30)
    with pytest.raises(CancelledError):
        trainer(folder, **more, checkpoints=kept, algorithms=[StopAt()]).train(stop)
    events: list[Any] = []

    class Nothing:
        def apply(self, moment: str, state: Any) -> None:
            """Stands where the other stood."""

    found = trainer(folder, **more, checkpoints=kept, algorithms=[Nothing()], events=events).train(
        threading.Event()
    )
    assert events[0] == {"kind": "trial_resumed", "step": 8, "epoch": 2}
    assert found.metrics == wanted.metrics
    assert all(torch.equal(found.weights[n], weight) for n, weight in wanted.weights.items())
