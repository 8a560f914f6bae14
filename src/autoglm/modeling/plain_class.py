"""Whether a class of transformers' own gives the same logits as a trained model.

as_plain_class(model, labels)  → that class with the weights, or None
opened(model, folder)          → that class as its Auto class opens it
agrees(model, plain, batches)  → whether it answers alike

Nothing is believed of a family: what agrees is written, opened again and compared again.
Expressible are a linear head on every token, where the family's class has the same; a linear head
without bias on a decoder's last token; `cls` pooling of DINOv2 (the other half of its head reads
0); an `mlp` head on `cls` of ELECTRA and DeBERTa-v2, whose classes have that head. BERT's,
RoBERTa's and ModernBERT's sequence classes put a layer of their own between pooling and head, and
so does ModernBERT's for tokens: a linear head has no place there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.initialization import no_init_weights

from autoglm.modeling.attention.registry import BUILT_IN
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification

TOLERANCE = 1e-4
# What was never read by us: missing there it stays as it is, present here it is left out.
UNREAD = ("pooler.dense.",)
MLP_PLACES: Mapping[str, tuple[str, str]] = {
    "electra": ("classifier.dense", "classifier.out_proj"),
    "deberta-v2": ("pooler.dense", "classifier"),
}


def is_of_images(model: AutoGLMForSequenceClassification) -> bool:
    return bool(getattr(model.backbone, "main_input_name", "") == "pixel_values")


def auto_class(model: AutoGLMForSequenceClassification) -> Any:
    """The Auto class under which others look for such a model."""
    if model.config.pooling == "none":
        return AutoModelForTokenClassification
    if is_of_images(model):
        return AutoModelForImageClassification
    return AutoModelForSequenceClassification


def as_plain_class(model: AutoGLMForSequenceClassification, labels: Sequence[str]) -> Any:
    """In eval mode; a candidate, to be held against the model by `agrees`. None where the head has
    no place in the class, or a part of it is not transformers'.
    """
    has_unit = (model.config.output_scale, model.config.output_shift) != (1.0, 0.0)
    has_own_heads = getattr(model.backbone.config, "own_num_heads", 0)
    if model.config.attention not in BUILT_IN or has_unit or has_own_heads:
        return None
    said = model.backbone.config.to_dict()
    said |= {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": model.config.problem_type,
    }
    config = type(model.backbone.config).from_dict(said)
    try:
        with no_init_weights():  # all but what was never read are given to it
            plain = auto_class(model).from_config(config, attn_implementation="sdpa")
    except ValueError:  # no such class, or it has no sdpa
        return None
    inner = getattr(plain, plain.base_model_prefix, None)
    if inner is None or not _take_backbone(plain, inner, model.backbone.state_dict()):
        return None
    return plain.eval() if _take_head(plain, model) else None


def _take_backbone(plain: Any, inner: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    # The tensors themselves: nothing changes them, and a second model's would be as large again.
    missing, unexpected = inner.load_state_dict(dict(weights), strict=False, assign=True)
    if [name for name in (*missing, *unexpected) if not name.startswith(UNREAD)]:
        return False
    with torch.random.fork_rng(devices=[]):
        for name in {name.rpartition(".")[0] for name in missing}:
            plain._init_weights(inner.get_submodule(name))
    return True


@torch.no_grad()
def _take_head(plain: Any, model: AutoGLMForSequenceClassification) -> bool:
    kind = model.backbone.config.model_type
    head: Any = model.classifier
    if model.config.head == "mlp" and kind in MLP_PLACES:
        first, last = (plain.get_submodule(name) for name in MLP_PLACES[kind])
        return _copied(first, head[0]) and _copied(last, head[2])
    place = getattr(plain, "classifier", None) or getattr(plain, "score", None)
    if model.config.head != "linear" or not isinstance(place, nn.Linear):
        return False
    if kind == "dinov2" and model.config.pooling == "cls":
        hidden = head.weight.shape[1]
        place.weight.zero_()
        place.weight[:, :hidden] = head.weight
        place.bias.copy_(head.bias)
        return True
    return _copied(place, head)


def _copied(place: Any, head: nn.Linear) -> bool:
    if place.weight.shape != head.weight.shape or (place.bias is None and head.bias.any()):
        return False
    place.weight.copy_(head.weight)
    if place.bias is not None:
        place.bias.copy_(head.bias)
    return True


def opened(model: AutoGLMForSequenceClassification, folder: Path) -> Any:
    """What others get who open `folder` by the Auto class of `model`, in eval mode."""
    return auto_class(model).from_pretrained(folder, local_files_only=True).eval()


@torch.no_grad()
def agrees(
    model: AutoGLMForSequenceClassification, plain: Any, batches: Sequence[Mapping[str, Tensor]]
) -> bool:
    """Whether `plain` says the same on these batches, pads among them."""
    for batch in batches:
        wanted = model(**batch).logits
        try:
            found = plain(**batch).logits
        except ValueError:  # a decoder without a pad token reads one row at a time
            return False
        if wanted.shape != found.shape:
            return False
        if "attention_mask" in batch and model.config.pooling == "none":
            is_token = batch["attention_mask"].bool()
            wanted, found = wanted[is_token], found[is_token]
        # `not <=`: what is no number does not agree.
        if not float((wanted - found).abs().max()) <= TOLERANCE:
            return False
    return True
