"""Makes a checkpoint's modeling_opdlm.py: one file of the sampler's own sources, so that each rule is written once.

The bundle begins with `sampling/model_file.py` and takes along every definition that this needs from other modules,
and no other, in the order in which they need each other. Modules keep their own text; only imports from opdlm go away.
"""

import ast
import pprint
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import opdlm
from opdlm.checkpoints.defaults import DECODINGS, SETTINGS

_START = "opdlm.sampling.model_file"
_LITERALS = {"opdlm.checkpoints.defaults": {"SETTINGS": SETTINGS, "DECODINGS": DECODINGS}}
"""Modules of which only the values are taken."""


@dataclass(frozen=True)
class _Definition:
    """A top-level statement of a module: its text, the names that it binds, and those that it reads."""

    text: str
    binds: frozenset[str]
    reads: frozenset[str]


@dataclass(frozen=True)
class _Module:
    """One source file: its definitions in order, its docstring, and what it imports.

    Attributes:
        ours: name -> module of opdlm that it comes from. others: name -> the import statement that brings it.
    """

    name: str
    doc: str
    definitions: tuple[_Definition, ...]
    ours: dict[str, str]
    others: dict[str, str]


@cache
def model_file() -> str:
    """The text of modeling_opdlm.py.

    Raises:
        ValueError: two modules bind the same name, or one is imported in a way that cannot be bundled.
    """
    needed = _needed(_START)
    _check_names(needed)
    imports = sorted({module.others[name] for module, name in _other_names(needed)})
    parts = [
        _header(needed),
        *imports,
        "",
        "# Each setting of `generate`, and each number of a decoding: (default, least, most).",
    ]
    for name, values in _literals(needed):
        parts.append(f"{name} = {pprint.pformat(values, width=110, sort_dicts=False)}")
    for module, definitions in needed.items():
        parts.append(f"\n\n# --- {module} " + "-" * max(0, 110 - len(module)))
        parts += [f"\n\n{definition.text}" for definition in definitions]
    return "\n".join(parts) + "\n"


def _header(needed: "dict[str, list[_Definition]]") -> str:
    modules = "\n".join(f"    {name}" for name in needed)
    made = f"Made by opdlm {opdlm.__version__} (checkpoints/bundle.py) of parts of\n\n{modules}"
    return f'"""{_read(_START).doc}\n\n{made}\n"""\n\n# Do not edit: change these modules and save the model again.\n'


def _needed(start: str) -> "dict[str, list[_Definition]]":
    """Module -> the definitions that `start` needs, in their order; a module comes before those that import it."""
    wanted: dict[str, set[str]] = {}
    todo = [(start, name) for definition in _read(start).definitions for name in definition.binds]
    while todo:
        module_name, name = todo.pop()
        if module_name in _LITERALS or name in wanted.setdefault(module_name, set()):
            continue
        module = _read(module_name)
        wanted[module_name].add(name)
        if name in module.ours:
            todo.append((module.ours[name], name))
        for definition in module.definitions:
            if name in definition.binds:
                todo += [(module_name, other) for other in definition.reads | definition.binds]
    order = list(dict.fromkeys(_in_order(start)))
    return {
        name: [one for one in _read(name).definitions if one.binds & wanted.get(name, set())]
        for name in order
        if any(one.binds & wanted.get(name, set()) for one in _read(name).definitions)
    }


def _in_order(module_name: str) -> Iterator[str]:
    """The modules that it needs, each before those that import it."""
    if module_name in _LITERALS:
        return
    for other in dict.fromkeys(_read(module_name).ours.values()):
        yield from _in_order(other)
    yield module_name


def _literals(needed: "dict[str, list[_Definition]]") -> Iterator[tuple[str, object]]:
    for module_name in needed:
        for name, source in _read(module_name).ours.items():
            if source in _LITERALS:
                yield name, _LITERALS[source][name]


def _other_names(needed: "dict[str, list[_Definition]]") -> Iterator[tuple[_Module, str]]:
    """What the definitions read of other libraries."""
    for module_name, definitions in needed.items():
        module = _read(module_name)
        read = frozenset[str]().union(*(definition.reads for definition in definitions))
        yield from ((module, name) for name in sorted(read & module.others.keys()))


def _check_names(needed: "dict[str, list[_Definition]]") -> None:
    owners: dict[str, str] = {}
    for module_name, definitions in needed.items():
        for name in (name for definition in definitions for name in definition.binds):
            if owners.setdefault(name, module_name) != module_name:
                raise ValueError(f"{owners[name]} and {module_name} both define {name}; rename one")


@cache
def _read(module_name: str) -> _Module:
    package, _, leaf = module_name.rpartition(".")
    source = files(package).joinpath(f"{leaf}.py").read_text(encoding="utf-8")
    body = ast.parse(source).body
    ours, others, definitions = {}, {}, []
    doc = ast.get_docstring(ast.Module(body, [])) or ""
    for statement in body[1:] if doc else body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            _note_import(statement, ours, others)
        elif isinstance(statement, ast.Expr) and definitions:  # the docstring of the constant above it
            above = definitions[-1]
            text = f"{above.text}\n{_text(source, statement)}"
            definitions[-1] = _Definition(text, above.binds, above.reads)
        else:
            binds, reads = _names(statement)
            definitions.append(_Definition(_text(source, statement), binds, reads))
    return _Module(module_name, doc, tuple(definitions), ours, others)


def _note_import(statement: ast.Import | ast.ImportFrom, ours: dict[str, str], others: dict[str, str]) -> None:
    module = statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
    for alias in statement.names:
        if module.split(".")[0] == "opdlm":
            if alias.asname:
                raise ValueError(f"{module}.{alias.name} is imported under another name; a bundle cannot hold that")
            ours[alias.name] = module
        elif module:
            others[alias.asname or alias.name] = f"from {module} import {ast.unparse(alias)}"
        else:
            others[(alias.asname or alias.name).split(".")[0]] = f"import {ast.unparse(alias)}"


def _names(statement: ast.stmt) -> tuple[frozenset[str], frozenset[str]]:
    """What a top-level statement binds at the top, and every name that it reads anywhere, annotations as text too."""
    binds, reads = set(), set()
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        binds.add(statement.name)
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            reads.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            reads.add(node.value)
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        binds |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return frozenset(binds), frozenset(reads)


def _text(source: str, statement: ast.stmt) -> str:
    """The statement as it is written, with its decorators and the comments on its lines."""
    first = min([statement.lineno, *(one.lineno for one in getattr(statement, "decorator_list", []))])
    assert statement.end_lineno is not None
    return "\n".join(source.split("\n")[first - 1 : statement.end_lineno])
