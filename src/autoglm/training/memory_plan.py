"""What a trial's batches take, measured on its own model, and how they stay below its budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoglm.contracts.record import digest
from autoglm.modeling.auto_model import layers_of
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification
from autoglm.training import devices, memory
from autoglm.training.data import Encoded
from autoglm.training.forward import Forward, set_training_mode

# Settings of the section `training` that a step's memory depends on.
ASKED = (
    "memory_budget", "batch_size", "gradient_checkpointing", "trainable_layers", "optimizer", "ema",
)  # fmt: skip


def planned_for(
    model: AutoGLMForSequenceClassification, settings: Mapping[str, Any], precision: str
) -> str:
    """Names what a plan holds for: trials share one where all that memory depends on is equal."""
    learning = sorted((n, [*p.shape]) for n, p in model.named_parameters() if p.requires_grad)
    said = [settings[name] for name in ASKED]
    attention = str(getattr(model.backbone.config, "_attn_implementation", ""))
    return digest(said, precision, model.config.to_diff_dict(), attention, learning)


def memory_plan(
    model: AutoGLMForSequenceClassification,
    forward: Forward,
    task: Any,
    data: Encoded,
    settings: Mapping[str, Any],
) -> memory.MemoryPlan:
    """Raises: TrainingError training.budget_too_small."""
    learning = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    # Gradients, two moments, the best weights, and those with their whole word table at the end;
    # the average, and what it takes the place of.
    copies = 7 if settings["ema"] else 5
    longest = sorted(data.train, key=lambda i: -data.lengths[i])

    def kept(rows: Sequence[int], checkpointing: bool) -> int:
        forward.set_gradient_checkpointing(checkpointing)
        with memory.KeptForBackward(list(model.parameters())) as counted:
            task.loss(forward.outputs(rows), data.batch(rows))
        return counted.num_bytes

    def activations(rows: Sequence[int], checkpointing: bool) -> int:
        set_training_mode(model)
        whole = kept(rows, False)
        if not checkpointing:
            return whole
        # One layer at a time is there as a whole.
        return kept(rows, True) + whole // len(layers_of(model.backbone))

    return memory.plan(
        int(settings["memory_budget"]),
        fixed=devices.used_bytes(model.device) + copies * learning,
        largest=longest[: int(settings["batch_size"])],
        activations=activations,
        is_checkpointed=bool(settings["gradient_checkpointing"]),
    )
