"""What a trial will cost: from the machine's measured speed and what is stored already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch

from autoglm.contracts.stage_chain import Cost, StageChain
from autoglm.modeling.auto_model import layers_of
from autoglm.modeling.backbones.own_models import is_own
from autoglm.modeling.body import can_cut
from autoglm.modeling.frozen import frozen_keys, named_in
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification
from autoglm.reuse.prefix_cache import PrefixCache
from autoglm.training import devices
from autoglm.training.data import Encoded
from autoglm.training.decisions import Decisions
from autoglm.training.frozen_part import kept_in

# Of a training step, what the matmuls take (benchmarks/training_speed.py); the rest comes on top.
MATMUL_SHARE = 0.8
# Multiplications of a weight per token: forward, and twice that back where it learns.
FORWARD, LEARNING = 2, 6


def seconds_per_flop(decisions: Decisions) -> float:
    """CPU-seconds of a floating-point operation: of a machine once, of a run ever after."""
    name = "seconds_per_flop"
    mine = f"{name} {devices.identity('cpu')}"
    return float(decisions.decided(name, measure, of_machine=mine))


def measure(seconds: float = 0.1) -> float:
    """CPU-seconds of a floating-point operation in matmuls of a small encoder's shape, measured now
    on one thread: of several, those that wait burn seconds too.
    """
    left, right = torch.randn(512, 384), torch.randn(384, 1536)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.mm(left, right)
        started, wall, count = time.process_time(), time.monotonic(), 0
        while time.monotonic() - wall < seconds or not count:
            torch.mm(left, right)
            count += 1
        return (time.process_time() - started) / (count * 2 * 512 * 384 * 1536)
    finally:
        torch.set_num_threads(threads)


def cost_of(
    chain: StageChain,
    *,
    known: int,
    model: AutoGLMForSequenceClassification,
    data: Encoded,
    cache: PrefixCache,
    cache_key: str,
    seconds_per_flop: float,
    frozen: Sequence[int] = (),
) -> Cost:
    """`known` stages of the chain are stored; `frozen` layers do not learn, epoch by epoch."""
    left = len(chain.stages) - known
    steps = sum(stage.num_steps for stage in chain.stages[known:])
    training = chain.stages[-1].settings["training"]
    layers = [model.backbone] if is_own(model.backbone) else layers_of(model.backbone)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    has_adapters = bool(chain.stages[-1].settings["model"]["structure"]["lora_rank"])
    learns = has_adapters or is_own(model.backbone)
    num_frozen = 0 if learns else max(0, len(layers) - int(training["trainable_layers"]))
    below, above = sum(sizes[:num_frozen]), sum(sizes[num_frozen:])
    train = sum(data.lengths[: data.num_train])
    every = sum(data.lengths)
    why = [f"{left} of {len(chain.stages)} stages of {chain.stages[-1].num_steps} steps"]
    learning = [sum(sizes[num:]) for num in frozen] or [above] * len(chain.stages)
    per_size = LEARNING * train + FORWARD * (every - train)
    flops, whole = sum(learning[known:]) * per_size, sum(learning) * per_size
    if frozen:
        why.append(f"at the end {len(layers) - frozen[-1]} layers learn")
        stopped = [above - each for each in learning]
        known_then = stopped[known:] or [0]
        flops += FORWARD * every * (max(known_then) if cache.is_on else sum(known_then))
        whole += FORWARD * every * (max(stopped) if cache.is_on else sum(stopped))
    if num_frozen:
        hidden = int(model.backbone.config.hidden_size)
        reason = "images are not kept" if data.are_images else ""
        if not can_cut(model.backbone):
            reason = "its layers cannot be cut apart"
        reason = reason or cache.why_too_large(every, hidden)
        if reason:
            flops += left * FORWARD * below * every
            whole += len(chain.stages) * FORWARD * below * every
            why.append(f"{num_frozen} frozen layers in each epoch: {reason}")
        else:
            device = devices.choose(str(training["device"]))
            made = partial(frozen_keys, model.backbone, device)
            keys = cache.remembered(devices.name_on(device.type, f"{cache_key}/parts"), made)
            kept = kept_in(str(training["precision"]))
            is_known = cache.has(named_in(keys[num_frozen], kept))
            flops += 0 if is_known else FORWARD * below * every
            whole += FORWARD * below * every
            said = "are kept" if is_known else "are encoded once"
            why.append(f"states behind {num_frozen} frozen layers {said}")
    head = sum(p.numel() for p in model.classifier.parameters())
    of_flop = seconds_per_flop / MATMUL_SHARE
    if not left:
        return Cost(
            cpu_seconds=0.0, disk_bytes=0, num_steps=0, whole=whole * of_flop, why=("it is stored",)
        )
    return Cost(
        cpu_seconds=flops * of_flop,
        disk_bytes=4 * (above + head),
        num_steps=steps,
        whole=whole * of_flop,
        why=tuple(why),
    )
