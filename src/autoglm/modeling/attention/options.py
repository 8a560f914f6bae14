"""What of an attention's parameters is the user's to set. No torch: a config is checked by it."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autoglm.errors import PluginError

# Transformers' own, without options.
BUILT_IN = ("sdpa", "eager")
# What transformers itself passes is no option of the user's.
NOT_OPTIONS = frozenset(
    {"module", "query", "key", "value", "attention_mask", "scaling", "dropout", "is_causal"}
    | {"position_bias", "sliding_window", "softcap", "s_aux", "cache", "output_attentions"}
)


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameters with a default that transformers does not pass: name → default."""
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.default is not inspect.Parameter.empty and p.name not in NOT_OPTIONS
    }


def options_in_source(place: str) -> set[str]:
    """The same names, read out of the file of `module:function`, which is not imported."""
    module, _, name = place.partition(":")
    spec = find_spec(module)
    assert spec is not None, place
    assert spec.origin is not None, place
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            said = node.args
            plain = [*said.posonlyargs, *said.args]
            own = zip(said.kwonlyargs, said.kw_defaults, strict=True)
            found = {p.arg for p in plain[len(plain) - len(said.defaults) :]}
            found |= {p.arg for p, default in own if default is not None}
            return found - NOT_OPTIONS
    raise AssertionError(f"{place} is a function at the top of its file")


def check_options(name: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises: PluginError plugin.wrong_option with the nearest."""
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
