"""Low-rank adapters on a model that is trained: put in before, merged behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from autoglm.modeling.auto_model import LM_HEAD
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.modeling.surgery.lora import add_lora, merge_lora


def adapt(model: AutoGLMForSequenceClassification, structure: StructureConfig) -> Any:
    """Adapters in the backbone's attention, in place; they, pooling and head learn, nothing else.
    An lm_head is as pretrained as the backbone and stays.

    Gives peft's model around the backbone; None where `lora_rank` is 0. Draws from torch's
    generator.
    """
    if not structure.lora_rank:
        return None
    around = add_lora(
        model.backbone, structure.lora_rank, structure.lora_alpha, structure.lora_dropout
    )
    model.classifier.requires_grad_(model.config.head != LM_HEAD)
    if model.config.pooling == "attention":
        model.pooling.requires_grad_(True)
    return around


def load_trained(
    model: AutoGLMForSequenceClassification,
    structure: StructureConfig,
    weights: Mapping[str, Tensor],
    *,
    adapter: Path,
) -> None:
    """Put trained weights into the start that they were trained from; adapters are merged, and
    kept at `adapter` in peft's form.
    """
    around = adapt(model, structure)
    model.load_state_dict(dict(weights), strict=False)
    if around is not None:
        around.peft_config["default"].base_model_name_or_path = ""  # a path of this machine
        around.save_pretrained(adapter)
        model.backbone = merge_lora(around)
