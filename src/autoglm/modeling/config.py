from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from autoglm.config.schema import Key, live
from autoglm.contracts.task import TaskName
from autoglm.modeling.backbones.config import ConvConfig, RecurrentConfig
from autoglm.modeling.surgery.config import StructureConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    backbone: Annotated[
        str,
        live(
            "A folder, a hub id that lies in Hugging Face's local cache, `package:NAME[/FILE]` "
            "(weights of a package), `conv` or `recurrent` (docs/backbones.md)."
        ),
    ]
    task: Annotated[TaskName, live("What the model learns to do (docs/tasks.md).")] = (
        "text-classification"
    )
    attention: Annotated[
        str | Mapping[str, Any],
        live("Attention, by name; or {name: top_k, k: 64}.", is_named=True),
    ] = "sdpa"
    pooling: Annotated[
        Literal["auto", "mean", "cls", "last", "max", "attention"],
        live("How token vectors become one. `auto`: the backbone's own (mean if it says nothing)."),
    ] = "auto"
    head: Annotated[str, live("What answers from the pooled vector, by name: linear, mlp, …")] = (
        "linear"
    )
    structure: Annotated[StructureConfig, Key("What of the backbone's shape is changed.")] = field(
        default_factory=StructureConfig
    )
    conv: Annotated[ConvConfig, Key("Sizes of the backbone `conv`.")] = field(
        default_factory=ConvConfig
    )
    recurrent: Annotated[RecurrentConfig, Key("Sizes of the backbone `recurrent`.")] = field(
        default_factory=RecurrentConfig
    )
    start_from: Annotated[
        Literal["auto", "backbone", "stable"],
        live(
            "Where training starts. `auto`: from stable when labels, backbone and its edits are the"
            " same, and the study has no folds; `stable` keeps what its head knows of labels that"
            " are still there."
        ),
    ] = "auto"
