"""The code of a part, cut out of its file, so that a model folder opens where nobody knows it.

What is carried is the function or class, what it names at the top of its file, and the imports that
these need. Decorators and lines that speak to this package are left out; a part whose own code
needs this package cannot be carried.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from autoglm.errors import ModelError

OURS = "autoglm"
# Files of ours that need nothing of ours: what is taken from them is written out.
SELF_CONTAINED = ("autoglm.modeling.attention.any_length",)
TABLE = "autoglm_parts"


def carried_files(parts: Mapping[str, Any]) -> dict[str, str]:
    """File name → text, for parts by `kind:name`; `autoglm_parts.py` holds the table `PARTS`.

    Raises: ModelError model.not_carried, with what stands in the way.
    """
    if not parts:
        return {}
    files, imports, rows = {}, [], []
    for number, (key, part) in enumerate(sorted(parts.items())):
        module = f"autoglm_part_{number}"
        files[f"{module}.py"] = cut_out(key, part)
        imports.append(f"from .{module} import {part.__name__} as part_{number}")
        rows.append(f"    {key!r}: part_{number},")
    table = [
        "from typing import Any",
        "",
        *imports,
        "",
        "PARTS: dict[str, Any] = {",
        *rows,
        "}",
        "",
    ]
    files[f"{TABLE}.py"] = "\n".join(table)
    return files


def cut_out(key: str, part: Any) -> str:
    """The part's own module. Raises: ModelError model.not_carried."""
    name = getattr(part, "__name__", "")
    if not (inspect.isfunction(part) or inspect.isclass(part)) or "<" in part.__qualname__:
        raise _not_carried(key, f"it is no function or class at the top of a file: {part!r}")
    try:
        module = inspect.getmodule(part)
        assert module is not None
        source = inspect.getsource(module)
    except (OSError, TypeError, AssertionError) as error:
        raise _not_carried(key, f"its source cannot be read ({error})") from error
    return "\n\n".join(["from __future__ import annotations", *_cut(key, source, name)]) + "\n"


def _cut(key: str, source: str, name: str) -> list[str]:
    """The statements that define `name`, and what they need, in the order of the file."""
    tree, lines = ast.parse(source), source.splitlines()
    ours = _names_of_ours(tree)
    kept: set[int] = set()
    from_files: list[str] = []
    wanted, seen = [name], set()
    while wanted:
        current = wanted.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in ours:
            from_files += _of_another_file(key, tree, current)
        for number, statement in enumerate(tree.body):
            if number not in kept and current in _defines(statement) and current not in ours:
                kept.add(number)
                wanted += sorted(_needs(statement, ours))
    own = [_text(statement, lines, ours) for n, statement in enumerate(tree.body) if n in kept]
    return [*dict.fromkeys(from_files), *own]


def _of_another_file(key: str, tree: ast.Module, name: str) -> list[str]:
    """What a name stands for that comes from a file of ours which is torch alone."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.ImportFrom) and statement.module in SELF_CONTAINED:
            for alias in statement.names:
                if (alias.asname or alias.name) == name == alias.name:
                    module = importlib.import_module(statement.module)
                    return _cut(key, inspect.getsource(module), name)
    raise _not_carried(key, f"it needs {name} of this package")


def _names_of_ours(tree: ast.Module) -> dict[str, int]:
    """Names that are imported from this package → line."""
    found: dict[str, int] = {}
    for statement in ast.walk(tree):
        if isinstance(statement, ast.ImportFrom) and (
            (statement.module or "").split(".")[0] == OURS or statement.level
        ):
            found |= {alias.asname or alias.name: statement.lineno for alias in statement.names}
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                if alias.name.split(".")[0] == OURS:
                    found[(alias.asname or alias.name).split(".")[0]] = statement.lineno
    return found


def _defines(statement: ast.stmt) -> set[str]:
    """Names that a statement at the top of a file makes, or adds an attribute to."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        targets = [statement.target]
    return {name for target in targets for name in _loaded(target)}


def _loaded(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            yield child.id


def _needs(statement: ast.stmt, ours: Mapping[str, int]) -> set[str]:
    found = set(_loaded(statement))
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        for decorator in statement.decorator_list:
            if _is_ours(decorator, ours):
                kept = [d for d in statement.decorator_list if not _is_ours(d, ours)]
                found = {n for node in (*statement.body, *kept) for n in _loaded(node)}
                if not isinstance(statement, ast.ClassDef):
                    found |= set(_loaded(statement.args))
                    if statement.returns is not None:
                        found |= set(_loaded(statement.returns))
                else:
                    found |= {n for base in statement.bases for n in _loaded(base)}
    return found


def _is_ours(decorator: ast.expr, ours: Mapping[str, int]) -> bool:
    return any(name in ours for name in _loaded(decorator))


def _text(statement: ast.stmt, lines: list[str], ours: Mapping[str, int]) -> str:
    """The statement's own lines, comments and all, without decorators of ours."""
    decorators = getattr(statement, "decorator_list", [])
    kept = [f"@{ast.unparse(d)}" for d in decorators if not _is_ours(d, ours)]
    assert statement.end_lineno is not None
    return "\n".join([*kept, *lines[statement.lineno - 1 : statement.end_lineno]])


def _not_carried(key: str, reason: str) -> ModelError:
    return ModelError(
        f"{key} cannot be carried by the model's folder: {reason}.",
        code="model.not_carried",
        next_step="Write it as a plain function that needs torch and its own file only.",
    )
