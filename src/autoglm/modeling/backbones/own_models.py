"""`conv` and `recurrent` known to transformers, and opened with the sizes that a trial asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from autoglm.errors import ModelError
from autoglm.modeling.backbones.modeling_conv import AutoGLMConvConfig, AutoGLMConvModel
from autoglm.modeling.backbones.modeling_recurrent import (
    AutoGLMRecurrentConfig,
    AutoGLMRecurrentModel,
)
from autoglm.modeling.backbones.own import config_sizes

MODELS: Mapping[str, Any] = {
    "autoglm_conv": AutoGLMConvModel,
    "autoglm_recurrent": AutoGLMRecurrentModel,
}
for _config, _model in (
    (AutoGLMConvConfig, AutoGLMConvModel),
    (AutoGLMRecurrentConfig, AutoGLMRecurrentModel),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)


def start_of(raw: Mapping[str, Any], settings: Mapping[str, Any], seed: int | None) -> Any:
    """The backbone of a start folder, whose `config.json` is `raw`.

    Sizes of the section `model.NAME` go before the folder's. The weights are drawn by `seed`, or
    the folder's own; torch's generator stays as it was.
    Raises: ModelError model.structure for sizes that cannot be.
    """
    wanted = _with_sizes(raw, settings)
    seed = int(wanted.get("seed", 0)) if seed is None else seed
    return _drawn({**wanted, "seed": seed})


def resized(backbone: Any, settings: Mapping[str, Any]) -> Any:
    """A trained backbone, or a new one where the section `model.NAME` asks for other sizes."""
    raw = backbone.config.to_dict()
    wanted = _with_sizes(raw, settings)
    return backbone if wanted == raw else _drawn(wanted)


def is_own(backbone_or_raw: Any) -> bool:
    kind = backbone_or_raw.get("model_type") if isinstance(backbone_or_raw, Mapping) else None
    return (kind or getattr(getattr(backbone_or_raw, "config", None), "model_type", "")) in MODELS


def _with_sizes(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    name = str(raw["model_type"]).removeprefix("autoglm_")
    return {**raw, **config_sizes(name, settings.get(name, {}))}


def _drawn(raw: Mapping[str, Any]) -> Any:
    model = MODELS[raw["model_type"]]
    said = {k: v for k, v in raw.items() if k != "model_type"}
    if int(said.get("kernel_size", 1)) % 2 == 0:
        raise ModelError(
            f"model.conv.kernel_size {said['kernel_size']}: a layer looks as far to the left as to "
            "the right, so it must be odd.",
            code="model.structure",
        )
    config = model.config_class(**said)
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(said["seed"]))
        return model(config).eval()
