"""The role of the tests: every name of the program is a stand-in that asks the parent to have the program called."""

import ast
import builtins
import json
from collections.abc import Callable
from typing import IO, Any

from .messages import Send, module_scope
from .values import decode, encode


class Stand:
    """Stands in the tests for an object of the program: it can be handed back to it, and equals itself alone."""

    def __init__(self, number: int) -> None:
        self.number = number


def run(request: dict[str, Any], requests: IO[bytes], send: Send) -> None:
    """Runs the tests to their end, and says that they passed."""
    stands: dict[int, Stand] = {}

    def find(number: int) -> Stand:
        return stands.setdefault(int(number), Stand(number))

    def number_of(value: Any) -> int:
        if not isinstance(value, Stand):
            raise TypeError(f"the tests hand a {type(value).__name__} to the program, which cannot leave its process")
        return value.number

    def stand_in(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            asked = {"arguments": encode(list(arguments), number_of), "named": encode(named, number_of)}
            send({"call": name, **asked})
            reply = json.loads(requests.readline())
            if "value" not in reply:
                raise _raised(reply)
            return decode(reply["value"], find)

        return call

    scope = module_scope("tests")
    exec(compile(request["prelude"], "<prelude>", "exec", dont_inherit=True), scope)
    tree = ast.parse(request["source"])
    for name in {request["entry"], *_free_names(tree, scope)}:
        scope[name] = stand_in(name)
    exec(compile(tree, "<tests>", "exec", dont_inherit=True), scope)
    if any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
        scope["check"](scope[request["entry"]])
    send({"passed": True})


def _free_names(tree: ast.Module, scope: dict[str, Any]) -> set[str]:
    """Names that the tests use and nobody but the program can define."""
    used, bound = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return used - bound - set(scope) - set(dir(builtins))


def _raised(reply: dict[str, Any]) -> Exception:
    """What the program raised, as an exception of the same builtin class."""
    detail = str(reply.get("detail", ""))
    kind = getattr(builtins, detail.partition(":")[0], None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
        return kind(detail.partition(": ")[2])
    return RuntimeError(detail)
