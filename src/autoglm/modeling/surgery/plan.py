"""What an edit will do, in numbers; everything that cannot be done is refused here, before work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autoglm.errors import ModelError
from autoglm.modeling.surgery.config import StructureConfig, edits_of
from autoglm.modeling.surgery.families import family_of, refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Of a backbone. `head_size` is `is_tied` where it is hidden / heads and no key of its own."""

    layers: int
    feed_forward: int
    heads: int
    key_heads: int
    head_size: int
    hidden: int
    is_tied: bool

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.key_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """`layers`: for each new layer, the old one that it comes from; a repeat is a new layer."""

    old: Sizes
    layers: tuple[int, ...]
    feed_forward: int
    heads: int
    hidden: int

    @property
    def own_heads(self) -> int:
        """Heads that the architecture's config cannot say: it takes hidden / heads for the head
        size. 0 where it can.
        """
        is_said = not self.old.is_tied or self.heads * self.old.head_size == self.hidden
        return 0 if is_said else self.heads

    @property
    def is_pruning(self) -> bool:
        """Whether units are chosen by importance."""
        old = self.old
        return (
            self.feed_forward < old.feed_forward
            or self.heads < old.heads
            or self.hidden < old.hidden
        )


def sizes_of(config: Any) -> Sizes:
    own = getattr(config, "head_dim", None)
    heads = getattr(config, "own_num_heads", 0) or config.num_attention_heads
    return Sizes(
        layers=config.num_hidden_layers,
        feed_forward=config.intermediate_size,
        heads=heads,
        key_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=own or config.hidden_size // config.num_attention_heads,
        hidden=config.hidden_size,
        is_tied=own is None,
    )


def plan(backbone: Any, structure: StructureConfig) -> Plan:
    """Raises: ModelError model.structure with what, the allowed values and the next step."""
    family_of(backbone)
    old = sizes_of(backbone.config)
    hidden = _hidden(old, structure.hidden_size)
    return Plan(
        old=old,
        layers=_layers(old, structure, str(backbone.config.model_type)),
        feed_forward=structure.feed_forward or old.feed_forward,
        heads=_heads(old, structure.num_heads, hidden),
        hidden=hidden,
    )


def left_to_do(structure: StructureConfig, made_by: Mapping[str, Any]) -> StructureConfig:
    """The edits that a start needs which was made by the edits `made_by`: all, or none.

    Raises: ModelError model.structure when it was made by others.
    """
    if not made_by:
        return structure
    if dict(made_by) != (wanted := edits_of(asdict(structure))):
        raise refused(
            f"training starts from a version that was made by {dict(made_by)}, the structure"
            f" asked for is {wanted}",
            next_step="Set model.start_from: backbone.",
        )
    return StructureConfig()


def needs_code(structure: StructureConfig, backbone: Any) -> str:
    """Why transformers' own class cannot open the result; empty when it can."""
    agreed = plan(backbone, structure)
    if not agreed.own_heads:
        return ""
    return (
        f"{agreed.heads} heads: the config of {backbone.config.model_type!r} has no head size of"
        f" its own, its heads are cut from the hidden width ({agreed.hidden} /"
        f" {agreed.old.head_size} = {agreed.hidden // agreed.old.head_size} heads)"
    )


def _layers(old: Sizes, structure: StructureConfig, kind: str) -> tuple[int, ...]:
    chosen, count = structure.layers, structure.num_layers
    if not chosen:
        return by_count(old.layers, count or old.layers, keep_last=not _is_encoder(kind))
    if count and count != len(chosen):
        raise refused(
            f"num_layers {count} and {len(chosen)} layers by index say different things",
            next_step="Set one of model.structure.num_layers and model.structure.layers.",
        )
    if min(chosen) < 0 or max(chosen) >= old.layers:
        raise refused(f"layers {list(chosen)}: this backbone has 0 to {old.layers - 1}")
    if list(chosen) != sorted(chosen):
        # A layer reads what those below it wrote: in another order none of them was trained.
        raise refused(f"layers {list(chosen)}: the order of layers stays, so the indices must rise")
    if kind == "modernbert" and chosen[0] != 0:
        raise refused(
            f"layers {list(chosen)}: ModernBERT's layer 0 has no attention norm, and no other "
            "layer can stand in its place",
            next_step="Begin model.structure.layers with 0.",
        )
    return chosen


def by_count(num_old: int, num_new: int, *, keep_last: bool) -> tuple[int, ...]:
    """Which layers stay, or which are repeated.

    Fewer: the top goes first, the most consistent choice for encoders that are trained on (Sajjad
    et al., 2020, arXiv:2004.03844); decoders also keep their last layer (Gromov et al., 2024,
    arXiv:2403.17887). More: new ones are spread among the old (LLaMA Pro, arXiv:2401.02415).
    """
    if num_new >= num_old:
        return tuple(position * num_old // num_new for position in range(num_new))
    if keep_last:
        return (*range(num_new - 1), num_old - 1)
    return tuple(range(num_new))


def _is_encoder(kind: str) -> bool:
    return kind in {"bert", "roberta", "xlm-roberta", "camembert", "modernbert"}


def _heads(old: Sizes, wanted: int, hidden: int) -> int:
    if old.is_tied and hidden != old.hidden and old.heads * old.head_size == old.hidden:
        return wanted or hidden // old.head_size  # the width moves whole heads
    wanted = wanted or old.heads
    if wanted % old.group:
        raise refused(
            f"num_heads {wanted}: {old.group} query heads share a key head and come or go "
            f"together, so it must be a multiple of {old.group}"
        )
    return wanted


def _hidden(old: Sizes, wanted: int) -> int:
    wanted = wanted or old.hidden
    if wanted < old.hidden and wanted % old.head_size:
        raise refused(
            f"hidden_size {wanted}: a smaller width must be a multiple of the head size "
            f"{old.head_size}"
        )
    if wanted > old.hidden and wanted % old.hidden:
        raise refused(
            f"hidden_size {wanted}: a larger width must be a whole multiple of {old.hidden}; only "
            "whole copies leave the norms' mean and variance, so the function, as they were",
            next_step=f"Set model.structure.hidden_size to {2 * old.hidden}.",
        )
    return wanted


def check_length(max_length: int, limit: int) -> None:
    """Raises: ModelError model.too_long."""
    if max_length > limit > 0:  # XLNet says -1: it has no table
        raise ModelError(
            f"texts of {max_length} tokens: the backbone has {limit} positions.",
            code="model.too_long",
            next_step=f"Set model.structure.max_positions to {max_length}, or data.max_length "
            f"to {limit} or less.",
        )
