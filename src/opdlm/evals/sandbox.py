"""Runs code that a model wrote, in a child process with few rights, and says which calls gave the expected value.

What it protects from: the accidents of generated code. Endless loops (limits on processor and wall-clock time, the
whole process group is killed), memory bombs (a limit on address space), floods of output (dropped), writes to files
(a size limit of zero, an empty folder of its own), child processes, imports and `open` (not among the builtins),
secrets in the environment (it is empty), and code that prints what a grader may want to read (results leave by a
channel of their own, and the expected values never enter the child).

What it does not protect from: a determined attacker. Restricted builtins can be escaped, and a child that escapes
reads the user's files and reaches the network. The limit on processes does not bind root. The limits are those of
Linux; macOS enforces some of them, other systems none. Run models that you do not trust inside a container.
"""

import ast
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opdlm.errors import UsageError
from opdlm.evals import sandbox_child

Kind = Literal["ok", "syntax", "exception", "timeout", "memory", "killed"]

_CHILD = Path(sandbox_child.__file__)
_KINDS: dict[int, Kind] = {
    sandbox_child.OK: "ok",
    sandbox_child.SYNTAX: "syntax",
    sandbox_child.EXCEPTION: "exception",
    sandbox_child.MEMORY: "memory",
}


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How the code ended, and what its calls returned.

    kind: "ok" when the source and every call ran to the end, whatever they returned; else what stopped them.
    reprs: `repr()` of each call's result, in order, up to the call that stopped.
    passed: one flag per call: it returned the expected value. Calls not reached are False.
    detail: one line on the error, "" where there is none.
    """

    kind: Kind
    reprs: tuple[str, ...]
    passed: tuple[bool, ...]
    detail: str = ""

    @property
    def all_passed(self) -> bool:
        """Every call ran and returned the expected value."""
        return self.kind == "ok" and all(self.passed)


def run_python(
    source: str, calls: Sequence[tuple[str, str]], *, timeout_s: float = 2.0, memory_mib: int = 256
) -> SandboxResult:
    """Executes `source` in a child process, then evaluates each call in its namespace.

    Args:
        source: the generated code; it has safe builtins only, no `import`, no `open`.
        calls: pairs of an expression and the literal that it should equal, such as `("f([3, 1])", "[1, 3]")`.
            Equal as Python has it (`1 == 1.0`). An expected text that is no literal is compared with the repr.
        timeout_s: wall-clock seconds for everything, the start of the child included.
        memory_mib: address space of the child, the interpreter's own 30 MiB or so included.

    Raises:
        UsageError: a limit is not positive.
    """
    if timeout_s <= 0 or memory_mib <= 0:
        raise UsageError(f"timeout_s={timeout_s} and memory_mib={memory_mib} must be positive; give larger ones")
    payload = {
        "source": source,
        "expressions": [expression for expression, _ in calls],
        "cpu_s": math.ceil(timeout_s) + 1,  # one second more: where both can stop the code, the wall clock does
        "memory_mib": memory_mib,
    }
    output, exit_code = _run_child(json.dumps(payload).encode(), timeout_s)
    kind = "timeout" if exit_code is None else _KINDS.get(exit_code, "killed")
    lines = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
    detail = lines.pop() if kind in ("syntax", "exception") and lines else ""
    passed = [_equal(got, expected) for got, (_, expected) in zip(lines, calls, strict=False)]
    passed += [False] * (len(calls) - len(passed))
    return SandboxResult(kind, tuple(lines), tuple(passed), detail)


def _run_child(payload: bytes, timeout_s: float) -> tuple[bytes, int | None]:
    """What the child wrote and its exit code, None when the time ran out."""
    command = [sys.executable, "-I", "-S", "-B", str(_CHILD)]
    with (
        tempfile.TemporaryDirectory(prefix="opdlm-") as folder,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        ) as child,
    ):
        try:
            output, _ = child.communicate(payload, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _kill(child)
            return child.communicate()[0], None
        except BaseException:  # Ctrl-C: leave no child behind
            _kill(child)
            raise
    return output, child.returncode


def _kill(child: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        os.killpg(child.pid, signal.SIGKILL)  # not reaped yet, so the number is still the child's
    else:
        child.kill()


def _equal(got: str, expected: str) -> bool:
    """Compares here and not in the child, where a class of the code's own could claim to equal anything."""
    if got == expected:
        return True
    try:
        return bool(ast.literal_eval(got) == ast.literal_eval(expected))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # not literals
        return False
