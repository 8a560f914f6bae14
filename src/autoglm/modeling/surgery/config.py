from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from autoglm.config.schema import live


@dataclass(frozen=True, kw_only=True, slots=True)
class StructureConfig:
    """0 or () leaves the backbone as it is. Everything is one size for all layers."""

    num_layers: Annotated[
        int,
        Ge(0),
        live(
            "Layers. Fewer: the lowest stay (decoders: and the last). More: new ones start as "
            "identity. 0 = as the backbone is."
        ),
    ] = 0
    layers: Annotated[
        tuple[int, ...],
        live(
            "Layers by index, rising; the second of a repeated one is new and starts as identity."
        ),
    ] = ()
    feed_forward: Annotated[
        int, Ge(0), live("Feed-forward size, one for all layers; 0 = as the backbone is.")
    ] = 0
    num_heads: Annotated[
        int, Ge(0), live("Query heads, in whole groups of a key head; 0 = as the backbone is.")
    ] = 0
    hidden_size: Annotated[
        int,
        Ge(0),
        live(
            "Hidden width: fewer in multiples of the head size, more in multiples of the width; "
            "0 = as the backbone is."
        ),
    ] = 0
    max_positions: Annotated[
        int, Ge(0), live("Tokens that a text may have; 0 = as the backbone is.")
    ] = 0
    rope_scaling: Annotated[
        Literal["yarn", "linear", "longrope"],
        live(
            "How rotary positions are stretched. `longrope`: only in batches with a text beyond "
            "the old limit."
        ),
    ] = "yarn"
    lora_rank: Annotated[int, Ge(0), live("Rank of LoRA adapters in attention; 0 = none.")] = 0
    lora_alpha: Annotated[float, Gt(0), live("Adapters are scaled by lora_alpha / lora_rank.")] = (
        16.0
    )
    lora_dropout: Annotated[float, Ge(0), Lt(1), live("Dropout before the adapters.")] = 0.0


# What changes the backbone's own shape. Adapters are merged behind training, and put in anew.
EDITS = ("num_layers", "layers", "feed_forward", "num_heads", "hidden_size", "max_positions")


def edits_of(structure: Mapping[str, Any]) -> dict[str, Any]:
    """What the section `model.structure` does to a backbone, as JSON keeps it; empty for nothing.

    A model version's folder says it (`made_of` in autoglm.json), so that nothing is done twice.
    """
    said = {name: structure.get(name) for name in EDITS}
    made = {name: list(v) if isinstance(v, (list, tuple)) else v for name, v in said.items() if v}
    if "max_positions" in made:
        made["rope_scaling"] = structure.get("rope_scaling", "yarn")
    return made
