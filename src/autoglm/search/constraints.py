"""`num_layers * hidden_size <= 4096`: what a proposal must fulfil before it is trained.

A small language read by Python's own parser and computed here: names (config keys or their unique
last part), numbers, quoted texts, `+ - * / // %`, comparisons, `and`, `or`, `not`. Nothing is
called, nothing is executed.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoglm.errors import SearchError
from autoglm.search.space import resolve
from autoglm.search.spellings import refused

MAX_LENGTH = 500
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_COMPARED: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """`keys`: each name in the text → the config key that it means."""

    text: str
    keys: Mapping[str, str]
    tree: ast.expr = field(compare=False, repr=False)

    def violation(self, in_force: Mapping[str, Any]) -> float:
        """0 where it holds; else how far it is off, so that a sampler sees the way back.

        Raises: SearchError search.constraint where a value is of the wrong kind.
        """
        values = {name: in_force.get(key) for name, key in self.keys.items()}
        try:
            return 0.0 if _value(self.tree, values) is True else _distance(self.tree, values)
        except (TypeError, OverflowError) as error:
            shown = ", ".join(f"{name} = {value!r}" for name, value in values.items())
            raise _wrong(self.text, f"it cannot be computed with {shown}: {error}") from error
        except ZeroDivisionError:
            return 1.0


def read_constraints(texts: Sequence[str], keys: Collection[str]) -> tuple[Constraint, ...]:
    """Raises: SearchError search.constraint, search.unknown_key."""
    return tuple(_read(text, keys) for text in texts)


def violations(constraints: Sequence[Constraint], in_force: Mapping[str, Any]) -> dict[str, float]:
    """Text → violation, of those that do not hold."""
    found = {each.text: each.violation(in_force) for each in constraints}
    return {text: amount for text, amount in found.items() if amount > 0}


def _read(text: str, keys: Collection[str]) -> Constraint:
    if len(text) > MAX_LENGTH:
        raise _wrong(text[:40] + "…", f"it has more than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _wrong(text, f"it cannot be read: {getattr(error, 'msg', error)}") from error
    names: dict[str, str] = {}
    _check(tree, text, names, keys)
    if not isinstance(tree, (ast.Compare, ast.BoolOp)) and not _is_not(tree):
        raise _wrong(text, "it compares nothing")
    if not names:
        raise _wrong(text, "it names no dimension")
    return Constraint(text=text, keys=names, tree=tree)


def _check(node: ast.expr, text: str, names: dict[str, str], keys: Collection[str]) -> None:
    """Refuse what is not of the language; `names` is filled."""
    if isinstance(node, ast.Constant) and type(node.value) in {int, float, str, bool}:
        return
    if isinstance(node, (ast.Name, ast.Attribute)) and (name := _dotted(node)):
        names[name] = name if name in keys else resolve(name, keys)
        return
    is_known = isinstance(node, ast.BoolOp) or (
        isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC
        or isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.UAdd))
        or isinstance(node, ast.Compare) and all(type(op) in _COMPARED for op in node.ops)
    )  # fmt: skip
    if not is_known:
        raise _wrong(text, f"{ast.unparse(node)} is not of its language")
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            _check(child, text, names, keys)


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.Name, ast.Attribute)):
        return values[_dotted(node)]
    if isinstance(node, ast.BoolOp):
        every = all if isinstance(node.op, ast.And) else any
        return every(_value(part, values) for part in node.values)
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, values)
        return not inner if isinstance(node.op, ast.Not) else _signed(node.op, _number(inner))
    if isinstance(node, ast.BinOp):
        left, right = (_number(_value(part, values)) for part in (node.left, node.right))
        return _ARITHMETIC[type(node.op)](left, right)
    assert isinstance(node, ast.Compare), "_check let nothing else through"
    sides = [_value(part, values) for part in (node.left, *node.comparators)]
    pairs = zip(node.ops, sides, sides[1:], strict=False)
    return all(_COMPARED[type(op)](left, right) for op, left, right in pairs)


def _signed(op: ast.unaryop, number: float) -> float:
    return -number if isinstance(op, ast.USub) else number


def _number(value: Any) -> Any:
    """Texts can be added and multiplied in Python; here that is a mistake."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return value


def _distance(node: ast.expr, values: Mapping[str, Any]) -> float:
    """How far a comparison of two numbers is off; 1 where that means nothing."""
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        missed = [part for part in node.values if not _value(part, values)]
        return sum(_distance(part, values) for part in missed)
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return 1.0
    left, right = _value(node.left, values), _value(node.comparators[0], values)
    if isinstance(left, str) or isinstance(right, str):
        return 1.0
    off = abs(float(left) - float(right))
    return off if off > 0 and math.isfinite(off) else 1.0


def _wrong(text: str, problem: str) -> SearchError:
    return refused(
        f"search.constraints: {text!r}: {problem}.",
        "Write a comparison as num_layers * hidden_size <= 4096.",
        "search.constraint",
    )
