from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from autoglm.config.schema import Bytes, Share, live


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    lr: Annotated[float, Gt(0), live("Peak learning rate.")] = 2e-4
    epochs: Annotated[int, Ge(1), live("Trips over the training rows.")] = 3
    batch_size: Annotated[int, Ge(1), live("Rows of one optimizer step.")] = 32
    accumulation: Annotated[
        int, Ge(1), live("Parts in which a batch is computed: less memory, the same step.")
    ] = 1
    weight_decay: Annotated[float, Ge(0), live("Decoupled weight decay.")] = 0.01
    layer_decay: Annotated[
        float, Gt(0), Le(1), live("Factor of the rate per layer below the head; 1 = one rate.")
    ] = 1.0
    dropout: Annotated[float, Ge(0), Lt(1), live("Dropout of the trainable part and the head.")] = (
        0.1
    )
    trainable_layers: Annotated[
        int,
        Ge(0),
        live("Top layers that learn; 0 trains the head alone. More than there are: all."),
    ] = 2
    freezing: Annotated[
        Literal["auto", "none", "progressive"],
        live(
            "`progressive`: in each epoch half of the layers learn that did in the one before;"
            " `auto`: a refresh from the backbone tries that first, else as `none`."
        ),
    ] = "auto"
    warmup: Annotated[Share, Ge(0), Lt(1), live("Share of optimizer steps with a rising rate.")] = (
        0.1
    )
    warmup_steps: Annotated[
        int,
        Ge(0),
        live(
            "Optimizer steps with a rising rate, in place of `warmup`: the same for any number of"
            " epochs, so that trials share them. 0 = by share."
        ),
    ] = 0
    optimizer: Annotated[str, live("Optimizer, by name.")] = "adamw"
    schedule: Annotated[str, live("Learning rate after the warm-up, by name.")] = "linear"
    clip_norm: Annotated[
        float, Ge(0), live("Largest gradient norm of one optimizer step; 0 = no limit.")
    ] = 1.0
    clip_value: Annotated[
        float, Ge(0), live("Largest value in a gradient, before the norm; 0 = no limit.")
    ] = 0.0
    label_smoothing: Annotated[
        Share, Ge(0), Lt(1), live("Share of a label's weight that all labels share.")
    ] = 0.0
    class_weights: Annotated[
        Literal["none", "balanced"], live("`balanced`: rare labels count as much as common ones.")
    ] = "none"
    early_stopping: Annotated[
        int, Ge(0), live("Epochs without a better score that end a trial; 0 = none do.")
    ] = 0
    keep: Annotated[
        Literal["auto", "best", "last"],
        live(
            "Whose weights a trial ends with: the `best` epoch's by validation, the `last` one's;"
            " `auto`: the last that is no more than a standard error worse than the best."
        ),
    ] = "auto"
    rehearsal: Annotated[
        Share,
        Gt(0),
        Le(1),
        live(
            "Share of the rows that stable has learnt which training from stable goes over again,"
            " beside those that are new to it; 1 = all."
        ),
    ] = 1.0
    ema: Annotated[
        float, Ge(0), Lt(1), live("Decay of the average of weights that is scored; 0 = none.")
    ] = 0.0
    algorithms: Annotated[
        tuple[str, ...], live("Parts that may change training, by name, in this order.")
    ] = ()
    callbacks: Annotated[tuple[str, ...], live("Parts that are told of training, by name.")] = ()
    log_steps: Annotated[int, Ge(1), live("Optimizer steps between two lines of the record.")] = 10
    checkpoint_every: Annotated[
        timedelta, live("Least time between checkpoints; never more than 2 % of training's time.")
    ] = timedelta(seconds=30)
    checkpoint_steps: Annotated[
        int, Ge(0), live("Optimizer steps between checkpoints; 0 = by time.")
    ] = 0
    checkpoint_budget: Annotated[Bytes, Ge(0), live("Bytes of one trial's checkpoints.")] = 2**32
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        live("Number format; `auto` measures, and takes bf16 where it is a fifth faster."),
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool, live("Compute layers again in the backward pass: less memory, more time.")
    ] = False
    memory_budget: Annotated[
        Bytes,
        Ge(0),
        live("Resident memory that training may take, on CUDA the device's; 0 = no limit."),
    ] = 0
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        live("Where training runs; `auto` is CUDA or mps where there, else the CPU."),
    ] = "auto"
    threads: Annotated[int, Ge(0), live("CPU threads; 0 = the cores that the process may use.")] = 0
    seed: Annotated[
        int, Ge(0), live("Seed of the study; each trial draws from (seed, number).")
    ] = 0
