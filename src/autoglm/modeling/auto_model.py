"""Opens a backbone, or an exported model version, as a model to be trained.

load_model(folder, settings, ...)       → AutoGLMForSequenceClassification
freeze_below(model, trainable_layers)   → number of frozen layers
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from autoglm.contracts.record import from_json
from autoglm.errors import ModelError
from autoglm.modeling.attention import registry as attentions
from autoglm.modeling.attention.probe import check_reading, probe
from autoglm.modeling.backbones import own_models
from autoglm.modeling.carried_code import carried_files
from autoglm.modeling.modeling_autoglm import (
    BUILT_IN_HEADS,
    AutoGLMConfig,
    AutoGLMForSequenceClassification,
    make_head,
)
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.modeling.surgery.edit import edit
from autoglm.modeling.surgery.plan import left_to_do
from autoglm.plugins import registry

# The head that a decoder brings along (modeling.causal_lm); others are a plugin's.
LM_HEAD = "lm_head"
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


def load_model(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    labels: Sequence[str],
    problem_type: str = "single_label_classification",
    is_per_token: bool = False,
    unit: tuple[float, float] = (0.0, 1.0),
    sample: Sequence[Sequence[int]] = (),
    max_length: int = 0,
    seed: int | None = None,
    head_seed: int = 0,
    made_by: Mapping[str, Any] | None = None,
    is_exported: bool = True,
) -> AutoGLMForSequenceClassification:
    """A backbone with a new head, in eval mode. `folder` is a backbone or an exported version;
    `settings` the section `model`. `unit` is where numbers to be answered lie: their mean and
    deviation. `sample` are rows of token ids by which pruning judges; `max_length` is the longest
    row that will come. `seed` draws the weights of a backbone that begins at random (its folder's
    seed when None), `head_seed` those of the head: whatever else was drawn before. `made_by`: the
    edits that made `folder`, which are not done again. `is_exported`: its own parts must be such as
    a folder can carry; without a folder they may come from anywhere, a notebook's cell as well.

    Attention dropout is 0: it would switch the fast attention kernel off.
    Raises: ModelError model.no_backbone when the weights cannot be opened, model.cannot_read when
    they are no encoder or decoder alone, model.broken_part, model.not_carried, and
    model.attention_… when the attention does not do what its name says (see `probe`), and
    model.structure, model.too_long (see `surgery.edit`).
    """
    said, head = settings["attention"], str(settings["head"])
    chosen = attentions.find(said)
    try:
        backbone, old_head = _opened(folder, attentions.use(said), settings, seed)
    except (OSError, ValueError, KeyError) as error:
        if "does not support an attention implementation" in str(error):
            raise ModelError(
                f"{folder}: attention {chosen.name!r} is none that this architecture calls: it"
                " computes its own.",
                code="model.attention_not_called",
                next_step="Set model.attention: eager, or take another backbone.",
            ) from error
        raise ModelError(f"{folder}: {error}.", code="model.no_backbone") from error
    structure = left_to_do(from_json(StructureConfig, settings.get("structure", {})), made_by or {})
    backbone = edit(backbone, structure, sample=sample, max_length=max_length)
    probe(backbone, said)
    check_reading(backbone)
    pooling = str(settings["pooling"])
    if is_per_token:
        pooling = "none"
    elif pooling == "auto":
        pooling = own_pooling(folder)
    config = AutoGLMConfig(
        attention=chosen.name,
        attention_options=dict(chosen.options),
        backbone_config=_plain(backbone.config.to_diff_dict()),
        pooling=pooling,
        head=head,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        problem_type=problem_type,
        output_shift=unit[0],
        output_scale=unit[1],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(head_seed)
        made = _head(head, int(backbone.config.hidden_size), len(labels))
        model = AutoGLMForSequenceClassification(config, backbone=backbone, head=made)
    model.known_outputs = _keep_rows(model, old_head) if problem_type != "regression" else []
    _keep_query(model, old_head)
    if is_exported:
        carried_files(parts_to_carry(model))  # before anything is trained
    model.eval()
    return model


def parts_to_carry(model: AutoGLMForSequenceClassification) -> dict[str, Any]:
    """Code by `kind:name` that neither the model's own file nor transformers has."""
    found: dict[str, Any] = {}
    attention, head = model.config.attention, model.config.head
    if attention not in attentions.BUILT_IN:
        found[f"attention:{attention}"] = attentions.find(attention).function
    kind = model.backbone.config.model_type
    if kind in own_models.MODELS:
        found[f"backbone:{kind}"] = own_models.MODELS[kind]
    if head not in (*BUILT_IN_HEADS, LM_HEAD):
        found[f"head:{head}"] = registry.get("head", head)
    return found


def _keep_rows(model: AutoGLMForSequenceClassification, old: _OldHead | None) -> list[int]:
    """Give the new head what the old one knew; the numbers of the outputs that it knew.

    Nothing is taken from a head of another name, or one whose tensors do not fit.
    """
    if old is None or old.name != model.config.head:
        return []
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    pairs = [(i, old.labels.index(name)) for i, name in enumerate(labels) if name in old.labels]
    new = dict(model.classifier.named_parameters())
    if set(new) != set(old.weights) or not pairs:
        return []
    to, taken = (list(side) for side in zip(*pairs, strict=True))
    fits = {}
    for name, tensor in new.items():
        was = old.weights[name]
        has_rows = was.shape[0] == len(old.labels) and tensor.shape[0] == len(labels)
        if was.shape[1:] != tensor.shape[1:] or not (has_rows or was.shape == tensor.shape):
            return []
        fits[name] = has_rows
    with torch.no_grad():
        for name, tensor in new.items():
            if fits[name]:
                tensor[to] = old.weights[name][taken]
            else:
                tensor.copy_(old.weights[name])
    return to


@torch.no_grad()
def _keep_query(model: AutoGLMForSequenceClassification, old: _OldHead | None) -> None:
    """The old head was trained behind what pooling `attention` had learnt to look for."""
    if old is None or old.query is None or model.config.pooling != "attention":
        return
    if old.query.shape == model.pooling.query.shape:
        model.pooling.query.copy_(old.query)


@dataclass(frozen=True, kw_only=True)
class _OldHead:
    name: str
    labels: tuple[str, ...]
    weights: dict[str, Tensor]
    query: Tensor | None


def _opened(
    folder: Path, attention: str, settings: Mapping[str, Any], seed: int | None
) -> tuple[Any, _OldHead | None]:
    """The backbone; of an exported version its head too."""
    quiet = {"attn_implementation": attention, "local_files_only": True, "dtype": torch.float32}
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if raw.get("model_type") == AutoGLMConfig.model_type:
        config = AutoGLMConfig.from_pretrained(folder)
        config.attention, config.attention_options = attention, {}
        name, config.head = config.head, "linear"  # its own would need a part that may be gone
        whole = AutoGLMForSequenceClassification.from_pretrained(folder, config=config, **quiet)
        backbone = whole.backbone
        if own_models.is_own(backbone):
            backbone = own_models.resized(backbone, settings)
        return backbone, _old_head(folder, name, config, "classifier.")
    if own_models.is_own(raw):
        return own_models.start_of(raw, settings, seed), None
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)
    backbone = AutoModel.from_pretrained(folder, config=config, **quiet)
    if not (folder / "model.onnx").is_file():
        return backbone, None
    # A version of transformers' own class; decoders call their head `score`.
    return backbone, _old_head(folder, "linear", config, "classifier.", "score.")


def _old_head(folder: Path, name: str, config: Any, *prefixes: str) -> _OldHead:
    stored = load_file(folder / "model.safetensors")
    weights = {n.partition(".")[2]: t for n, t in stored.items() if n.startswith(prefixes)}
    labels = tuple(str(config.id2label[i]) for i in sorted(config.id2label))
    query = stored.get("pooling.query")
    return _OldHead(name=name, labels=labels, weights=weights, query=query)


def linear_head(hidden_size: int, num_outputs: int) -> nn.Module:
    return make_head("linear", hidden_size, num_outputs)


def mlp_head(hidden_size: int, num_outputs: int) -> nn.Module:
    return make_head("mlp", hidden_size, num_outputs)


def _head(name: str, hidden_size: int, num_outputs: int) -> nn.Module:
    """By name; tried once, so that a wrong shape is told before training."""
    head = registry.get("head", name)(hidden_size, num_outputs)
    try:
        with torch.no_grad():
            shape = tuple(head(torch.zeros(2, hidden_size)).shape)
    except Exception as error:
        raise ModelError(
            f"head:{name}: {type(error).__name__}: {error}.", code="model.broken_part"
        ) from error
    if shape != (2, num_outputs):
        raise ModelError(
            f"head:{name} makes {shape} of (2, {hidden_size}), not (2, {num_outputs}).",
            code="model.broken_part",
        )
    made: nn.Module = head
    return made


def own_pooling(folder: Path) -> str:
    """What the backbone was trained with: sentence-transformers and our own versions say so; else
    mean.
    """
    for name in ("1_Pooling/config.json", "autoglm.json"):
        path = folder / name
        if path.is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))
            if facts.get("pooling") in {"attention", "cls", "last", "max"}:
                return str(facts["pooling"])
            return "cls" if facts.get("pooling_mode_cls_token") else "mean"
    return "mean"


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between machines and releases: the digest covers the rest."""
    return {k: v for k, v in config.items() if k not in {"transformers_version", "_name_or_path"}}


def layers_of(backbone: nn.Module) -> nn.ModuleList:
    """The encoder's layers: the longest ModuleList of like modules.

    Raises: ModelError model.no_layers.
    """
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    uniform = [m for m in lists if len({type(layer) for layer in m}) == 1]
    if not uniform:
        raise ModelError(
            f"{type(backbone).__name__} has no list of layers.", code="model.no_layers"
        )
    return max(uniform, key=len)


def freeze_below(model: AutoGLMForSequenceClassification, trainable_layers: int) -> int:
    """Let the head and the top layers learn; returns how many layers are frozen.

    As many layers as there are, or more: everything learns, embeddings too (returns 0). So does a
    backbone of ours, which began at random.
    """
    if own_models.is_own(model.backbone):
        model.requires_grad_(True)
        return 0
    layers = layers_of(model.backbone)
    num_frozen = max(0, len(layers) - trainable_layers)
    model.requires_grad_(num_frozen == 0)
    for layer in layers[num_frozen:]:
        layer.requires_grad_(True)
    if getattr(model.backbone, "pooler", None) is not None:
        model.backbone.pooler.requires_grad_(False)  # nothing reads it
    if not is_tied(model):
        model.classifier.requires_grad_(True)
    if model.config.pooling == "attention":
        model.pooling.requires_grad_(True)
    return num_frozen


def is_tied(model: AutoGLMForSequenceClassification) -> bool:
    """Whether the head is an lm_head and the table of token embeddings: it learns when they do."""
    if model.config.head != LM_HEAD:
        return False
    table: Any = model.backbone.get_input_embeddings()
    return table.weight is model.classifier.weight
