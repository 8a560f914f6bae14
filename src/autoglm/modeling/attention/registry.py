"""From what a config says to an attention that transformers can call.

find(said)  → Chosen: the function, its options, the name under which transformers knows it
use(said)   → that name, after registering function and mask
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from autoglm.errors import PluginError
from autoglm.plugins import registry

Function = Callable[..., Any]
BUILT_IN = ("sdpa", "eager")
# What transformers itself passes is no option of the user's.
NOT_OPTIONS = frozenset(
    {"module", "query", "key", "value", "attention_mask", "scaling", "dropout", "is_causal"}
    | {"position_bias", "sliding_window", "softcap", "s_aux", "cache", "output_attentions"}
)


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
        _check(name, options, {})
        return Chosen(name=name, implementation=name, function=None, options={})
    function = registry.get("attention", name)
    defaults = _options_of(function)
    _check(name, options, defaults)
    # Only what differs from the defaults is said in the name: `top_k` is `{name: top_k, k: 64}`.
    told = {k: v for k, v in sorted(options.items()) if v != defaults[k]}
    words = ",".join(f"{k}={v}" for k, v in told.items())
    implementation = f"{name}({words})" if words else name
    return Chosen(name=name, implementation=implementation, function=function, options=told)


def _options_of(function: Function) -> dict[str, Any]:
    """Parameters with a default that transformers does not pass: name → default."""
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.default is not inspect.Parameter.empty and p.name not in NOT_OPTIONS
    }


def _check(name: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for option in options:
        if option in known:
            continue
        near = difflib.get_close_matches(option, known, n=1, cutoff=0.0)
        raise PluginError(
            f"attention:{name} has no option {option!r}.",
            code="plugin.wrong_option",
            next_step=f"Did you mean {near[0]}? It has: {', '.join(sorted(known))}."
            if near
            else "It has none.",
        )


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
