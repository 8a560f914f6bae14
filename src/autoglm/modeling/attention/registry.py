"""From what a config says to an attention that transformers can call.

find(said)  → Chosen: the function, its options, the name under which transformers knows it
use(said)   → that name, after registering function and mask
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from autoglm.errors import PluginError
from autoglm.modeling.attention.options import BUILT_IN, check_options, options_of
from autoglm.plugins import registry

__all__ = ["BUILT_IN", "Chosen", "Function", "find", "mask_function", "use"]

Function = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """An attention with its options. `function` is None for transformers' own."""

    name: str
    implementation: str
    function: Function | None
    options: Mapping[str, Any]

    @property
    def bound(self) -> Function:
        assert self.function is not None
        return functools.partial(self.function, **self.options)

    @property
    def keeping_everything(self) -> Function | None:
        """The same, dropping nothing: must equal dense attention. None if it cannot be told to."""
        assert self.function is not None
        if getattr(self.function, "is_sparse", False):
            return None
        everything = getattr(self.function, "everything", {})
        return functools.partial(self.function, **{**self.options, **everything})


def use(said: str | Mapping[str, Any]) -> str:
    """Make an attention known to transformers; gives the name for `attn_implementation`.

    `said` is a plugin's name, or `{name: top_k, k: 64}` with its options. The same words give the
    same name, in every process. Raises: PluginError plugin.wrong_option, and what a search for
    a plugin raises.
    """
    chosen = find(said)
    if chosen.function is not None:
        AttentionInterface.register(chosen.implementation, chosen.bound)
        AttentionMaskInterface.register(chosen.implementation, mask_function(chosen.function))
    return chosen.implementation


def find(said: str | Mapping[str, Any]) -> Chosen:
    """Raises as `use`; registers nothing."""
    options = {} if isinstance(said, str) else {k: v for k, v in said.items() if k != "name"}
    name = said if isinstance(said, str) else said.get("name")
    if not isinstance(name, str):
        raise PluginError(
            f"attention {said!r} has no name.",
            code="plugin.wrong_option",
            next_step="Write for instance {name: top_k, k: 64}.",
        )
    if name in BUILT_IN:
        check_options(name, options, ())
        return Chosen(name=name, implementation=name, function=None, options={})
    function = registry.get("attention", name)
    defaults = options_of(function)
    check_options(name, options, defaults)
    # Only what differs from the defaults is said in the name: `top_k` is `{name: top_k, k: 64}`.
    told = {k: v for k, v in sorted(options.items()) if v != defaults[k]}
    words = ",".join(f"{k}={v}" for k, v in told.items())
    implementation = f"{name}({words})" if words else name
    return Chosen(name=name, implementation=implementation, function=function, options=told)


def mask_function(function: Function) -> Function:
    """What makes the mask that `function` gets: its own, or a boolean (batch, 1, query, key).

    transformers leaves a purely causal mask out and expects the function to look at `is_causal`.
    One that does not name it would see the future, silently: it gets every causal mask in full.
    """
    own: Function | None = getattr(function, "mask_function", None)
    if own is not None:
        return own
    if "is_causal" in inspect.signature(function).parameters:
        return sdpa_mask  # type: ignore[no-any-return]
    return _full_mask


def _full_mask(*args: Any, **kwargs: Any) -> Any:
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
