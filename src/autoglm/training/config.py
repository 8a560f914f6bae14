from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from autoglm.config.schema import Share, live


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    lr: Annotated[float, Gt(0), live("Peak learning rate of AdamW.")] = 2e-4
    epochs: Annotated[int, Ge(1), live("Trips over the training rows.")] = 3
    batch_size: Annotated[int, Ge(1), live("Rows of one optimizer step.")] = 32
    weight_decay: Annotated[float, Ge(0), live("Decoupled weight decay.")] = 0.01
    dropout: Annotated[float, Ge(0), Lt(1), live("Dropout of the trainable part and the head.")] = (
        0.1
    )
    trainable_layers: Annotated[
        int,
        Ge(0),
        live("Top layers that learn; 0 trains the head alone. More than there are: all."),
    ] = 2
    warmup: Annotated[Share, Ge(0), Lt(1), live("Share of optimizer steps with a rising rate.")] = (
        0.1
    )
    optimizer: Annotated[str, live("Optimizer, by name.")] = "adamw"
    schedule: Annotated[str, live("Learning rate after the warm-up, by name.")] = "linear"
    clip_norm: Annotated[float, Gt(0), live("Largest gradient norm of one optimizer step.")] = 1.0
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], live("Where training runs.")] = "auto"
    threads: Annotated[int, Ge(0), live("CPU threads; 0 = the cores there are.")] = 0
    seed: Annotated[
        int, Ge(0), live("Seed of the study; each trial draws from (seed, number).")
    ] = 0
