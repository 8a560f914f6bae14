"""What the dimensions of a backbone's weights mean, by architecture.

Axes: `hidden` (a value of the residual stream is written or scaled), `reads` (it is read),
`ff` and `2ff` (feed-forward units; gate and value stacked), `q`, `kv`, `qkv` (query heads, key or
value heads, all three stacked), `positions`, and `-` (never changed).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoglm.errors import ModelError

Axes = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Module names without `.weight`; a bias has the first axis of its weight.

    `layer` names are those behind `layers_path`.N.
    """

    layers_path: str
    outside: Mapping[str, Axes]
    layer: Mapping[str, Axes]
    attention_out: str
    feed_forward_out: str
    is_post_norm: bool = False

    def axes_of(self, name: str) -> Axes:
        """Axes of a parameter. Raises: ModelError model.structure for a weight not in the table."""
        module, _, kind = name.rpartition(".")
        table = self.outside
        if module.startswith(f"{self.layers_path}."):
            module = module.removeprefix(f"{self.layers_path}.").partition(".")[2]
            table = self.layer
        if module not in table:
            raise refused(f"the weight {name} is not one that can be edited")
        return table[module] if kind == "weight" else table[module][:1]


BERT = Family(
    layers_path="encoder.layer",
    is_post_norm=True,
    outside={
        "embeddings.word_embeddings": ("-", "hidden"),
        "embeddings.position_embeddings": ("positions", "hidden"),
        "embeddings.token_type_embeddings": ("-", "hidden"),
        "embeddings.LayerNorm": ("hidden",),
        "pooler.dense": ("hidden", "reads"),
    },
    layer={
        "attention.self.query": ("q", "reads"),
        "attention.self.key": ("q", "reads"),
        "attention.self.value": ("q", "reads"),
        "attention.output.dense": ("hidden", "q"),
        "attention.output.LayerNorm": ("hidden",),
        "intermediate.dense": ("ff", "reads"),
        "output.dense": ("hidden", "ff"),
        "output.LayerNorm": ("hidden",),
    },
    attention_out="attention.output.dense",
    feed_forward_out="output.dense",
)
MODERNBERT = Family(
    layers_path="layers",
    outside={
        "embeddings.tok_embeddings": ("-", "hidden"),
        "embeddings.norm": ("hidden",),
        "final_norm": ("hidden",),
    },
    layer={
        "attn_norm": ("hidden",),
        "attn.Wqkv": ("qkv", "reads"),
        "attn.Wo": ("hidden", "q"),
        "mlp_norm": ("hidden",),
        "mlp.Wi": ("2ff", "reads"),
        "mlp.Wo": ("hidden", "ff"),
    },
    attention_out="attn.Wo",
    feed_forward_out="mlp.Wo",
)
LLAMA = Family(
    layers_path="layers",
    outside={"embed_tokens": ("-", "hidden"), "norm": ("hidden",)},
    layer={
        "self_attn.q_proj": ("q", "reads"),
        "self_attn.k_proj": ("kv", "reads"),
        "self_attn.v_proj": ("kv", "reads"),
        "self_attn.o_proj": ("hidden", "q"),
        "self_attn.q_norm": ("-",),
        "self_attn.k_norm": ("-",),
        "mlp.gate_proj": ("ff", "reads"),
        "mlp.up_proj": ("ff", "reads"),
        "mlp.gate_up_proj": ("2ff", "reads"),
        "mlp.down_proj": ("hidden", "ff"),
        "input_layernorm": ("hidden",),
        "post_attention_layernorm": ("hidden",),
        "post_self_attn_layernorm": ("hidden",),
        "post_mlp_layernorm": ("hidden",),
    },
    attention_out="self_attn.o_proj",
    feed_forward_out="mlp.down_proj",
)
FAMILIES: Mapping[str, Family] = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "modernbert": MODERNBERT,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen3": LLAMA,
    "glm": LLAMA,
    "glm4": LLAMA,
}


def family_of(backbone: Any) -> Family:
    """Raises: ModelError model.structure for an architecture that is not in the table."""
    kind = str(backbone.config.model_type)
    if kind not in FAMILIES:
        raise refused(
            f"the structure of {kind!r} cannot be edited; of these it can: {', '.join(FAMILIES)}",
            next_step="Leave model.structure empty, or take one of these backbones.",
        )
    return FAMILIES[kind]


def refused(why: str, *, next_step: str = "") -> ModelError:
    return ModelError(f"{why}.", code="model.structure", next_step=next_step)
