"""The code of a part, cut out of its file, so that a model folder opens where nobody knows it.

What is carried is the function or class, what it names at the top of its file, also inside of `if`,
`try` and the like, and the imports that these need. Decorators and lines that speak to this package
are left out. A part whose own code needs this package, or a name that is not found, is refused.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import symtable
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from autoglm.errors import ModelError
from autoglm.plugins.project_files import PACKAGE

OURS = "autoglm"
# Files of ours that need nothing of ours: what is taken from them is written out.
SELF_CONTAINED = ("autoglm.modeling.attention.block_choice",)
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
    is_code = inspect.isfunction(part) or inspect.isclass(part)  # which have a hash
    if not is_code or "<" in part.__qualname__:
        raise _not_carried(key, f"it is no function or class at the top of a file: {part!r}")
    return _module_of(key, part)


@functools.cache
def _module_of(key: str, part: Any) -> str:
    name = part.__name__
    try:
        module = inspect.getmodule(part)
        assert module is not None
        source = inspect.getsource(module)
    except (OSError, TypeError, AssertionError) as error:
        raise _not_carried(key, f"its source cannot be read ({error})") from error
    text = "\n\n".join(["from __future__ import annotations", *_cut(key, source, name)]) + "\n"
    _check(key, text, module)
    return text


def _check(key: str, text: str, module: ModuleType) -> None:
    """Whether the cut module would find what the part's own module has."""
    lacking = sorted(name for name in _free_names(text) if name in vars(module))
    if lacking:
        raise _not_carried(key, f"where {', '.join(lacking)} comes from was not found in its file")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            said = [alias.name for alias in node.names]
            for name in [node.module or ""] if isinstance(node, ast.ImportFrom) else said:
                if _is_a_neighbour(name.partition(".")[0], module):
                    raise _not_carried(key, f"it imports {name}, which is a file of the project")


def _is_a_neighbour(name: str, module: ModuleType) -> bool:
    """Whether it was imported from where a project's own file is run."""
    found = getattr(sys.modules.get(name), "__file__", None)
    own = getattr(module, "__file__", None)
    if not module.__name__.startswith(f"{PACKAGE}.") or not found or not own:
        return False
    return Path(found).is_relative_to(Path(own).parent)


def _free_names(text: str) -> set[str]:
    """Names that the module reads and nothing in it makes."""
    made, read = set(dir(builtins)) | {"__name__", "__file__", "__doc__"}, set()
    made.update(name for s in ast.parse(text).body for each in _stars(s) for name in vars(each))
    top = symtable.symtable(text, "part", "exec")
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            is_outer = table is top or symbol.is_global()
            if is_outer and (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()):
                made.add(symbol.get_name())
            elif is_outer and symbol.is_referenced():
                read.add(symbol.get_name())
    return read - made


def _cut(key: str, source: str, name: str) -> list[str]:
    """The statements that define `name`, and what they need, in the order of the file."""
    tree, lines = ast.parse(source), source.splitlines()
    ours, foreign = _names_of_ours(tree), _imported(tree)
    statements = {n: s for n, s in enumerate(tree.body) if not _is_for_types(s)}
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
            continue
        makers = {n for n, s in statements.items() if current in _defines(s, foreign)}
        if not makers:
            makers = {
                n for n, s in statements.items() if any(hasattr(m, current) for m in _stars(s))
            }
        for number in makers - kept:
            kept.add(number)
            _refuse_of_ours(key, tree.body[number], current)
            wanted += sorted(_needs(tree.body[number], ours))
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


def _imported(tree: ast.Module) -> set[str]:
    return {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }


def _defines(statement: ast.stmt, imported: Collection[str]) -> set[str]:
    """Names that a statement at the top of a file makes, or changes: `SIZES.append(8)`, but not
    what was `imported` from others.
    """
    found: set[str] = set()
    for node in _outside_of_functions(statement):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Import() | ast.ImportFrom():
                found |= {(a.asname or a.name).split(".")[0] for a in node.names}
            case ast.Name(ctx=ast.Store()):
                found.add(node.id)
            case ast.Attribute(ctx=ast.Store()) | ast.Subscript(ctx=ast.Store()):
                found |= _root(node)
            case ast.Expr(value=ast.Call(func=ast.Attribute() as called)):
                found |= _root(called) - {*imported}
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                found.add(name)
            case ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                found.add(name)
    return found - {"*"}


def _outside_of_functions(statement: ast.AST) -> Iterator[ast.AST]:
    """The statement and all in it that is run in the file's own namespace."""
    yield statement
    own = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.GeneratorExp)
    if not isinstance(statement, (*own, ast.ListComp, ast.SetComp, ast.DictComp)):
        for child in ast.iter_child_nodes(statement):
            yield from _outside_of_functions(child)


def _root(node: ast.expr) -> set[str]:
    """`a` of `a.b[c].d`."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _stars(statement: ast.stmt) -> Iterator[ModuleType]:
    """What a statement imports all of; never this package."""
    for node in _outside_of_functions(statement):
        is_star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        if isinstance(node, ast.ImportFrom) and is_star and node.module and not _is_of_ours(node):
            yield importlib.import_module(node.module)


def _is_for_types(statement: ast.stmt) -> bool:
    """`if TYPE_CHECKING:`. Annotations are not evaluated in what is carried."""
    test = statement.test if isinstance(statement, ast.If) and not statement.orelse else None
    return test is not None and ast.unparse(test).endswith("TYPE_CHECKING")


def _refuse_of_ours(key: str, statement: ast.stmt, name: str) -> None:
    """A block is carried whole: an import of this package may not stand in it."""
    inside = [n for n in ast.walk(statement) if isinstance(n, (ast.Import, ast.ImportFrom))]
    if any(_is_of_ours(node) for node in inside):
        raise _not_carried(key, f"{name} is made beside an import of this package")


def _is_of_ours(node: ast.Import | ast.ImportFrom) -> bool:
    said = [alias.name for alias in node.names]
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else said
    is_relative = isinstance(node, ast.ImportFrom) and node.level > 0
    return is_relative or any(name.split(".")[0] == OURS for name in names)


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
