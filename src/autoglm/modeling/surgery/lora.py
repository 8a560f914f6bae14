"""Low-rank adapters in attention (Hu et al., 2021, arXiv:2106.09685), by peft."""

from __future__ import annotations

import re
import warnings
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from autoglm.modeling.surgery.families import refused

ATTENTION = re.compile(r"(^|\.)(attn|self_attn|attention)\.")


def add_lora(backbone: Any, rank: int, alpha: float, dropout: float = 0.0) -> Any:
    """A PeftModel around `backbone`, whose attention is changed in place; only adapters learn.

    The function is the same before the first step (one of the two factors is 0).
    Raises: ModelError model.structure for a rank below 1 or a backbone without such layers.
    """
    from peft import (  # half a second that a worker without it need not pay
        LoraConfig,
        get_peft_model,
    )

    if rank < 1:
        raise refused(f"lora_rank {rank}: an adapter has a rank of at least 1")
    found = targets(backbone)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=found,
        # GPT-2 keeps its weights the other way round.
        fan_in_fan_out=isinstance(backbone.get_submodule(found[0]), Conv1D),
    )
    with warnings.catch_warnings():
        # peft asks transformers 5 by a name that goes in 6; that is theirs to settle.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        return get_peft_model(backbone, config)


def targets(backbone: Any) -> list[str]:
    """Every Linear inside attention, by its full name: peft has no list for GLM and ModernBERT."""
    names = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and ATTENTION.search(name)
    ]
    if str(backbone.config.model_type).startswith("autoglm_"):
        raise refused(
            "lora_rank: conv and recurrent begin at random, so a small change of their weights is "
            "not what they need to learn",
            next_step="Set model.structure.lora_rank to 0.",
        )
    if not names:
        raise refused(
            f"lora_rank: no linear layer was found in the attention of {type(backbone).__name__}",
            next_step="Set model.structure.lora_rank to 0.",
        )
    return names


def merge_lora(model: Any) -> Any:
    """The backbone with the adapters added to its weights: no trace of peft, the same answers."""
    return model.merge_and_unload().eval()
