"""Works out small Python functions without running Python: no process, no confinement, the same on every system.

What the package's own `code` task is graded by. The source is parsed and never compiled; each node of its tree is
worked out here, on None, bool, int, str and flat lists. A function has plain parameters, assignments to names, `if`,
`for`, `return`, arithmetic, comparisons, subscripts, comprehensions of one loop, and calls of FUNCTIONS and METHODS.
What is worked out has Python's meaning. All else raises, and so do more steps or larger values than the limits.
"""

import ast
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

MAX_STEPS = 5_000
MAX_ITEMS = 1_000
MAX_BITS = 4096


class NotInterpretedError(Exception):
    """The source leaves the language or its limits, or fails as Python would; the message says where."""


class _Return(Exception):  # noqa: N818 (no error: it ends the function)
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


Scope = dict[str, Any]


def call_function(source: str, call: str) -> Any:
    """The value of a call such as `f([3, 1])` of a function that `source` defines.

    Raises:
        NotInterpretedError: a syntax error, something outside the language, or what fails when Python runs it.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # on odd escapes in the source
            functions = _functions(ast.parse(source))
        asked = ast.parse(call, mode="eval").body
        if not (isinstance(asked, ast.Call) and isinstance(asked.func, ast.Name)) or asked.keywords:
            raise NotInterpretedError(f"{call} is no call of a function")
        arguments = [ast.literal_eval(argument) for argument in asked.args]
        return _Run().function(functions[asked.func.id], arguments)
    except (ArithmeticError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise NotInterpretedError(f"{type(error).__name__}: {error}") from error


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    found = {}
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            raise _outside(node)
        plain = ast.arguments([], [ast.arg(each.arg) for each in node.args.args], None, [], [], None, [])
        if ast.unparse(plain) != ast.unparse(node.args):  # a default, *rest, an annotation
            raise _outside(node.args)
        found[node.name] = node
    return found


def _outside(node: ast.AST) -> NotInterpretedError:
    return NotInterpretedError(f"{type(node).__name__} is not in the language here")


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise NotInterpretedError("a number is too large")
    if isinstance(value, str | list) and len(value) > MAX_ITEMS:
        raise NotInterpretedError("a text or list is too long")
    return value


def _flat(items: list[Any]) -> list[Any]:
    if any(isinstance(item, list) for item in items):  # two that hold themselves again and again compare for ever
        raise NotInterpretedError("a list in a list")
    return items


def _times(left: Any, right: Any) -> Any:
    for many, count in ((left, right), (right, left)):
        if isinstance(many, str | list) and isinstance(count, int) and len(many) * count > MAX_ITEMS:
            raise NotInterpretedError("a text or list is too long")
    return left * right


def _remainder(left: Any, right: Any) -> Any:
    if not isinstance(left, int):  # a text would be formatted, to any length
        raise NotInterpretedError("% is for numbers here")
    return left % right


def _range(*bounds: int) -> list[int]:
    made = range(*bounds)
    if len(made) > MAX_ITEMS:
        raise NotInterpretedError("a range is too long")
    return list(made)


_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _times,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: _remainder,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, inside: item in inside,
    ast.NotIn: lambda item, inside: item not in inside,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "len": len,
    "list": lambda items: list(items),
    "max": max,
    "min": min,
    "range": _range,
    "sorted": lambda items: sorted(items),
    "sum": lambda items: sum(items),
}
METHODS: dict[str, Callable[[str], str]] = {"lower": str.lower, "strip": str.strip, "upper": str.upper}


class _Run:
    """One call, and the steps that it has taken."""

    def __init__(self) -> None:
        self._steps = 0

    def function(self, node: ast.FunctionDef, arguments: Sequence[Any]) -> Any:
        scope = dict(zip([each.arg for each in node.args.args], arguments, strict=True))
        try:
            self._block(node.body, scope)
        except _Return as returned:
            return returned.value
        return None

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise NotInterpretedError(f"more than {MAX_STEPS} steps")

    def _block(self, statements: Sequence[ast.stmt], scope: Scope) -> None:
        for statement in statements:
            self._step()
            self._statement(statement, scope)

    def _statement(self, node: ast.stmt, scope: Scope) -> None:
        match node:
            case ast.Return(value=None):
                raise _Return(None)
            case ast.Return(value=ast.expr() as made):
                raise _Return(self._value(made, scope))
            case ast.Assign(targets=[ast.Name(id=name)], value=made):
                scope[name] = self._value(made, scope)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=made) if not isinstance(scope[name], list):
                scope[name] = self._binary(op, scope[name], self._value(made, scope))
            case ast.If():
                self._block(node.body if self._value(node.test, scope) else node.orelse, scope)
            case ast.For(orelse=[]):
                for _ in self._each(node.target, node.iter, scope):
                    self._block(node.body, scope)
            case ast.Expr(value=ast.Constant()) | ast.Pass():  # a docstring
                return
            case _:
                raise _outside(node)

    def _each(self, target: ast.expr, items: ast.expr, scope: Scope) -> Iterator[None]:
        if not isinstance(target, ast.Name):
            raise _outside(target)
        for item in self._value(items, scope):
            self._step()
            scope[target.id] = item
            yield

    def _value(self, node: ast.expr, scope: Scope) -> Any:
        self._step()
        return _bounded(self._worked_out(node, scope))

    def _worked_out(self, node: ast.expr, scope: Scope) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | str() | None as value):
                return value
            case ast.Name(id=name):
                return scope[name]
            case ast.List(elts=parts):
                return _flat([self._value(part, scope) for part in parts])
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(op, self._value(left, scope), self._value(right, scope))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return _UNARY[type(op)](self._value(operand, scope))
            case ast.BoolOp(op=op, values=[*first, last]):
                for made in (self._value(part, scope) for part in first):
                    if bool(made) == isinstance(op, ast.Or):
                        return made
                return self._value(last, scope)
            case ast.Compare():
                return self._compare(node, scope)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._value(body if self._value(test, scope) else orelse, scope)
            case ast.Subscript(value=of, slice=ast.Slice(lower=lower, upper=upper, step=step)):
                many = self._value(of, scope)
                return many[
                    slice(*(None if part is None else self._value(part, scope) for part in (lower, upper, step)))
                ]
            case ast.Subscript(value=of, slice=index):
                return self._value(of, scope)[self._value(index, scope)]
            case ast.ListComp(elt=made, generators=[loop]) | ast.GeneratorExp(elt=made, generators=[loop]):
                inner = dict(scope)
                rounds = self._each(loop.target, loop.iter, inner)
                return _flat(
                    [self._value(made, inner) for _ in rounds if all(self._value(test, inner) for test in loop.ifs)]
                )
            case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in FUNCTIONS and name not in scope:
                return FUNCTIONS[name](*[self._value(each, scope) for each in given])
            case ast.Call(func=ast.Attribute(value=of, attr=name), args=[], keywords=[]) if name in METHODS:
                return METHODS[name](self._value(of, scope))
            case _:
                raise _outside(node)

    def _compare(self, node: ast.Compare, scope: Scope) -> bool:
        left = self._value(node.left, scope)
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            if type(op) not in _COMPARE:
                raise _outside(op)
            right = self._value(comparator, scope)
            if not _COMPARE[type(op)](left, right):
                return False
            left = right
        return True

    def _binary(self, op: ast.operator, left: Any, right: Any) -> Any:
        if type(op) not in _BINARY:
            raise _outside(op)
        return _bounded(_BINARY[type(op)](left, right))
