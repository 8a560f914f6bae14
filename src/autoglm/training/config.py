from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from autoglm.config.schema import Key, Share


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    lr: Annotated[float, Gt(0), Key("Peak learning rate of AdamW.")] = 2e-4
    epochs: Annotated[int, Ge(1), Key("Trips over the training rows.")] = 3
    batch_size: Annotated[int, Ge(1), Key("Rows of one optimizer step.")] = 32
    weight_decay: Annotated[float, Ge(0), Key("Decoupled weight decay.")] = 0.01
    dropout: Annotated[float, Ge(0), Lt(1), Key("Dropout of the trainable part and the head.")] = (
        0.1
    )
    trainable_layers: Annotated[
        int, Ge(0), Key("Top layers that learn; 0 trains the head alone. More than there are: all.")
    ] = 2
    warmup: Annotated[Share, Ge(0), Lt(1), Key("Share of optimizer steps with a rising rate.")] = (
        0.1
    )
    schedule: Annotated[
        Literal["linear", "cosine", "constant"], Key("Learning rate after the warm-up.")
    ] = "linear"
    clip_norm: Annotated[float, Gt(0), Key("Largest gradient norm of one optimizer step.")] = 1.0
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Key("Where training runs.")] = "auto"
    threads: Annotated[int, Ge(0), Key("CPU threads; 0 = the cores there are.")] = 0
    seed: Annotated[int, Ge(0), Key("Seed of the study; each trial draws from (seed, number).")] = 0
