"""The ways a dimension may be written → one, which JSON can keep: `{KIND: [ARGUMENTS]}`, `when`.

`{loguniform: [1e-4, 1e-2]}` · `loguniform(1e-4, 1e-2)` as text · `autoglm.tune` · Ray Tune's
objects and Optuna's distributions, known by their attributes: neither is imported.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from autoglm import tune
from autoglm.errors import SearchError

# Kind → how many numbers it wants; None: a list of values.
KINDS: Mapping[str, int | None] = {
    "choice": None, "uniform": 2, "loguniform": 2, "quniform": 3, "qloguniform": 3, "randint": 2,
    "lograndint": 2, "qrandint": 3, "qlograndint": 3, "steps": 3, "grid_search": None,
}  # fmt: skip
WHEN = "when"
_WORDS = {"true": True, "false": False, "null": None}


def plain_space(space: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Dotted name → `{KIND: [ARGUMENTS], when: {…}}`, of any spelling; nothing is judged but form.

    Raises: SearchError search.space.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, said in _flat(space, ""):
        if name in found:
            raise refused(f"{name} stands twice in the search space.", "Keep one.")
        found[name] = said
    return found


def _flat(space: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Nested maps (`training: {lr: …}`) read as dotted names."""
    for name, said in space.items():
        if isinstance(said, Mapping) and not _is_dimension(said):
            yield from _flat(said, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _plain(f"{prefix}{name}", said)


def _is_dimension(said: Mapping[str, Any]) -> bool:
    """`{unifrom: [0, 1]}` is one too, of a kind that is not known."""
    if WHEN in said or not said or KINDS.keys() & said.keys():
        return True
    return len(said) == 1 and isinstance(next(iter(said.values())), (list, tuple, int, float))


def _plain(name: str, said: Any) -> dict[str, Any]:
    kind = _of_any(name, said)
    return {key: without_numpy(value) for key, value in kind.items()}


def without_numpy(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's own; numpy is not imported for it."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {without_numpy(key): without_numpy(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_numpy(each) for each in value]
    return value


def _of_any(name: str, said: Any) -> dict[str, Any]:
    if isinstance(said, Mapping):
        return _of_map(name, said)
    if isinstance(said, str):
        said = _called(name, said)
    if isinstance(said, tune.Domain):
        made: dict[str, Any] = {said.kind: list(said.arguments)}
        return {**made, WHEN: dict(said.conditions)} if said.conditions else made
    known = _of_optuna(said) or _of_ray(name, said)
    if known is None:
        raise refused(
            f"search.space.{name} = {said!r} is no dimension.",
            f"Write {{KIND: […]}} or KIND(…), with KIND one of {', '.join(KINDS)}.",
        )
    return known


def _of_map(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in said if kind != WHEN]
    if len(kinds) != 1:
        raise refused(
            f"search.space.{name}: {', '.join(kinds) or 'nothing'} where one kind must stand.",
            f"Write one of {', '.join(KINDS)}.",
        )
    (kind,), arguments = kinds, said[kinds[0]]
    if kind not in KINDS:
        raise _unknown_kind(name, kind)
    arguments = without_numpy(arguments)
    values = list(arguments) if isinstance(arguments, (list, tuple)) else [arguments]
    made: dict[str, Any] = {"choice" if kind == "grid_search" else kind: values}
    conditions = said.get(WHEN, {})
    if not isinstance(conditions, Mapping):
        raise refused(f"search.space.{name}.when = {conditions!r}.", "Write when: {KEY: VALUE}.")
    return {**made, WHEN: dict(conditions)} if conditions else made


def _unknown_kind(name: str, kind: str) -> SearchError:
    near = difflib.get_close_matches(kind, KINDS, n=1)
    return refused(
        f"search.space.{name}: unknown kind {kind!r}.",
        f"Did you mean {near[0]}?" if near else f"Known: {', '.join(KINDS)}.",
    )


def _called(name: str, text: str) -> tune.Domain:
    """`choice([gru, lstm])`; a bare word is a text. Nothing is executed."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or any(k.arg is None for k in call.keywords):
            raise ValueError("it is no call")
        kind = ast.unparse(call.func).removeprefix("tune.")
        arguments = [_literal(argument) for argument in call.args]
        named = {str(k.arg): _literal(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise refused(
            f"search.space.{name} = {text!r} is no dimension.",
            f"Write {{KIND: […]}} or KIND(…), with KIND one of {', '.join(KINDS)}.",
        ) from error
    if kind not in KINDS:
        raise _unknown_kind(name, kind)
    try:
        made: tune.Domain = (steps if kind == "steps" else getattr(tune, kind))(*arguments, **named)
    except TypeError as error:
        problem = str(error).removeprefix(f"{kind}() ")
        raise refused(
            f"search.space.{name} = {text!r}: {problem}.", "See docs/search.md."
        ) from error
    return made


def steps(lower: float, upper: float, step: float) -> tune.Domain:
    """As YAML may call it; Optuna's objects say it in Python."""
    return tune.Domain("steps", (lower, upper, step))


def _literal(node: ast.expr) -> Any:
    """A value written in Python or YAML. Raises: ValueError."""
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_literal(key) if key is not None else None for key in node.keys]
        return dict(zip(keys, map(_literal, node.values), strict=True))
    return ast.literal_eval(node)


def _of_optuna(said: Any) -> dict[str, Any] | None:
    """FloatDistribution, IntDistribution, CategoricalDistribution."""
    name = type(said).__name__
    if name == "CategoricalDistribution":
        return {"choice": list(said.choices)}
    if name in {"FloatDistribution", "IntDistribution"} and said.low == said.high:
        return {"choice": [said.low]}  # for Optuna a range of one number is a constant
    if name == "FloatDistribution":
        if said.step is not None:
            return {"steps": [said.low, said.high, said.step]}
        return {"loguniform" if said.log else "uniform": [said.low, said.high]}
    if name == "IntDistribution":
        if said.step != 1:
            return {"steps": [said.low, said.high, said.step]}
        return {"lograndint" if said.log else "randint": [said.low, said.high + 1]}
    return None


def _of_ray(name: str, said: Any) -> dict[str, Any] | None:
    """ray.tune's Categorical, Float and Integer: bounds, and a sampler that may be quantized."""
    if hasattr(said, "sampler") and hasattr(said, "categories"):
        return {"choice": list(said.categories)}
    kind = type(said).__name__
    if kind not in {"Float", "Integer"} or not all(hasattr(said, a) for a in ("lower", "upper")):
        return None
    sampler: Any = getattr(said, "sampler", None)
    quantum: Any = None
    if type(sampler).__name__ == "Quantized":
        sampler, quantum = sampler.sampler, sampler.q
    shape = "_Uniform" if sampler is None else type(sampler).__name__
    is_finite = all(isinstance(b, (int, float)) and math.isfinite(b) for b in _bounds(said))
    if shape not in {"_Uniform", "_LogUniform"} or not is_finite:
        raise refused(
            f"search.space.{name}: {kind} sampled by {shape} has no bounds to stay in.",
            "Give it two bounds, as uniform(…) or loguniform(…).",
        )
    log = "log" if shape == "_LogUniform" else ""
    base = f"{log}uniform" if kind == "Float" else f"{log}randint"
    return {base: _bounds(said)} if quantum is None else {f"q{base}": [*_bounds(said), quantum]}


def _bounds(said: Any) -> list[Any]:
    return [without_numpy(said.lower), without_numpy(said.upper)]


def refused(message: str, next_step: str, code: str = "search.space") -> SearchError:
    """A space that cannot be meant: a bad call, no work was tried."""
    return SearchError(message, code=code, next_step=next_step, exit_code=2)
