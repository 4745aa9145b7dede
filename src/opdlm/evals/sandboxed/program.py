"""The role of the program: nothing that it says is trusted."""

import json
from collections.abc import Callable
from typing import IO, Any

from .messages import Send, failure, module_scope
from .values import decode, encode

MAX_REPR_CHARS = 10_000


def serve(request: dict[str, Any], requests: IO[bytes], send: Send) -> None:
    """Runs the code, says so, and answers calls until there are no more."""
    scope = module_scope("generated")
    try:
        code = [compile(request[part], "<generated>", "exec", dont_inherit=True) for part in ("prelude", "source")]
    except (SyntaxError, ValueError, RecursionError) as error:  # ValueError: null bytes, lone surrogates
        send({**failure(error), "error": "syntax"})
        return
    for part in code:
        exec(part, scope)
    send({"ready": True})
    kept: list[Any] = []

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    for line in requests:
        try:
            send(_answer(json.loads(line), scope, kept, keep))
        except BaseException as error:  # noqa: BLE001 (as in main)
            send(failure(error))


def _answer(
    asked: dict[str, Any], scope: dict[str, Any], kept: list[Any], keep: Callable[[Any], int]
) -> dict[str, Any]:
    if "eval" in asked:
        value = eval(compile(asked["eval"], "<call>", "eval", dont_inherit=True), scope)
        text = repr(value)
        if len(text) > MAX_REPR_CHARS:
            raise ValueError(f"the result is longer than {MAX_REPR_CHARS} characters")
        return {"value": encode(value, keep), "repr": text}
    arguments = decode(asked["arguments"], kept.__getitem__)
    named = decode(asked["named"], kept.__getitem__)
    return {"value": encode(scope[asked["call"]](*arguments, **named), keep)}
