"""Runs code that a model wrote apart from us, and says which of its calls gave the expected value.

The child that runs the code learns the code and the inputs, never an expected value: those stay in this process
(`run_calls`), or in a second child that runs the tests and in which no code of the model runs (`run_tests`). What the
first child says is data, read as plain builtin values, so a program passes only by knowing the answer. How far the
children are from the user's files, network and processes is the business of `sandbox_search.py`; docs/sandbox.md
has the whole account, and what does not hold.
"""

import ast
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from opdlm.errors import UsageError
from opdlm.evals.sandbox_confinement import Confinement
from opdlm.evals.sandbox_process import Child, ChildEndedError, program_request
from opdlm.evals.sandbox_search import confinement
from opdlm.evals.sandboxed.values import decode

Kind = Literal["ok", "syntax", "exception", "memory", "timeout", "killed", "junk"]

_ERRORS: dict[Any, Kind] = {"syntax": "syntax", "memory": "memory"}


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How the code ended, and what its calls returned.

    kind: "ok" when the source and every call ran to the end, whatever they returned; else what stopped them. "junk":
        it wrote what is no answer.
    reprs: `repr()` of each call's result, in order, up to the call that stopped.
    passed: one flag per call: it returned the expected value. Calls not reached are False.
    detail: one line on the error, "" where there is none. The code may have chosen it.
    """

    kind: Kind
    reprs: tuple[str, ...]
    passed: tuple[bool, ...]
    detail: str = ""

    @property
    def all_passed(self) -> bool:
        """Every call ran and returned the expected value."""
        return self.kind == "ok" and all(self.passed)


def run_calls(
    source: str,
    calls: Sequence[tuple[str, str]],
    *,
    prelude: str = "",
    within: Confinement | None = None,
    timeout_s: float = 2.0,
    memory_mib: int = 256,
) -> SandboxResult:
    """Executes `source` in a child process, then evaluates each call in its namespace.

    Args:
        source: the generated code, any Python; it finds the standard library and nothing else.
        calls: pairs of an expression and the literal that it should equal, such as `("f([3, 1])", "[1, 3]")`.
            Equal as Python has it (`1 == 1.0`). An expected text that is no literal is compared with the repr.
        prelude: code to run before it, such as imports.
        within: how the child is kept apart; the strongest way of this system if not given.
        timeout_s: wall-clock seconds for everything, the start of the child included.
        memory_mib: address space of the child, the interpreter's own 30 MiB or so included.

    Raises:
        UsageError: a limit is not positive.
        UnconfinedCodeError: `within` is not given, and this system has no confinement.
    """
    _check(timeout_s, memory_mib)
    request = program_request(source, prelude=prelude, timeout_s=timeout_s, memory_mib=memory_mib)
    reprs: list[str] = []
    passed: list[bool] = []
    kind, detail = "ok", ""
    with Child(within or confinement(), request, time.monotonic() + timeout_s) as child:
        try:
            said = child.line()
            for expression, expected in calls:
                if "error" in said:
                    break
                said = child.ask({"eval": expression})
                if "error" not in said:
                    text = str(said.get("repr"))
                    passed.append(_equal(said.get("value"), text, expected))
                    reprs.append(text)
            if "error" in said:
                kind, detail = _error(said)
        except ChildEndedError as ended:
            kind = ended.kind
    passed += [False] * (len(calls) - len(passed))
    return SandboxResult(kind, tuple(reprs), tuple(passed), detail)


def run_tests(
    source: str,
    tests: str,
    entry: str,
    *,
    prelude: str = "",
    within: Confinement | None = None,
    timeout_s: float = 2.0,
    memory_mib: int = 256,
) -> SandboxResult:
    """Executes `source` in one child process and `tests` in another, which calls the first through this process.

    Args:
        source, prelude, within, timeout_s, memory_mib: as for `run_calls`; the prelude also runs before the tests.
        tests: Python that raises where the program is wrong, such as asserts; a function `check` in it is called with
            the program's function. Names that only the program defines stand for the program's. Their arguments and
            results cross as plain values: what a call does to its arguments is not seen.
        entry: the name of the program's function.

    Returns:
        One flag in `passed`: the tests ran to their end.

    Raises:
        UsageError: a limit is not positive.
        UnconfinedCodeError: `within` is not given, and this system has no confinement.
    """
    _check(timeout_s, memory_mib)
    within = within or confinement()
    asked = program_request(source, prelude=prelude, timeout_s=timeout_s, memory_mib=memory_mib)
    asking = {**asked, "role": "tests", "source": tests, "entry": entry}
    deadline = time.monotonic() + timeout_s
    with Child(within, asked, deadline) as program, Child(within, asking, deadline) as testing:
        try:
            said = program.line()
            if "error" in said:
                return SandboxResult(*_failed(said))
            said = testing.line()
            while "call" in said:
                said = testing.ask(program.ask(said))
        except ChildEndedError as ended:
            return SandboxResult(ended.kind, (), (False,))
    return SandboxResult("ok", (), (True,)) if said.get("passed") is True else SandboxResult(*_failed(said))


def _check(timeout_s: float, memory_mib: int) -> None:
    if timeout_s <= 0 or memory_mib <= 0:
        raise UsageError(f"timeout_s={timeout_s} and memory_mib={memory_mib} must be positive; give larger ones")


def _error(said: dict[str, Any]) -> tuple[Kind, str]:
    return _ERRORS.get(str(said["error"]), "exception"), str(said.get("detail"))[:1000]


def _failed(said: dict[str, Any]) -> tuple[Kind, tuple[str, ...], tuple[bool, ...], str]:
    kind, detail = _error(said) if "error" in said else ("junk", "")
    return kind, (), (False,), detail


class _Unknown:
    """Stands for an object of the program, and equals nothing."""


def _equal(plain: Any, text: str, expected: str) -> bool:
    """Compares fresh builtin values here: no method of the program's own can claim to equal anything."""
    try:
        wanted = ast.literal_eval(expected)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # no literal
        return text == expected
    try:
        return bool(decode(plain, lambda number: _Unknown()) == wanted)
    except ValueError:
        return False
