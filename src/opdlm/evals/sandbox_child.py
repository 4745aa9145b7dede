"""The child's half of `sandbox.py`: a program of its own, run by path with `python -I -S -B`. Imports nothing of opdlm.

It reads one JSON payload from stdin, takes away its own rights, runs the code, and writes one JSON string a line: the
repr of each call, then on failure one line of detail. How it ended is its exit code, which needs no memory to say.
"""

import builtins
import json
import os
import sys
from types import CodeType
from typing import Any

# Exit codes, far from those of Python itself (0, 1, 2, 120) and of a shell (126 and up).
OK, SYNTAX, EXCEPTION, MEMORY = 40, 41, 42, 43

MAX_REPR_CHARS = 10_000

SAFE_NAMES = """
    abs all any ascii bin bool bytearray bytes callable chr classmethod complex dict divmod enumerate filter
    float format frozenset hash hex id int isinstance issubclass iter len list map max min next object oct ord
    pow print property range repr reversed round set slice sorted staticmethod str sum super tuple type zip
    __build_class__ Ellipsis NotImplemented ArithmeticError AssertionError AttributeError BaseException
    Exception FloatingPointError IndexError KeyError LookupError MemoryError NameError NotImplementedError
    OverflowError RecursionError RuntimeError StopIteration TypeError UnboundLocalError UnicodeError ValueError
    ZeroDivisionError
""".split()

# Double-underscore names that ordinary classes and the compiler write. All others lead to the interpreter's insides.
SAFE_DUNDERS = frozenset(
    f"__{name}__"
    for name in """
    abs add and bool build_class call contains delitem doc enter eq exit float floordiv format ge getitem gt
    hash iadd index init int invert isub iter le len lt matmul missing mod module mul name ne neg new next or
    post_init pow qualname radd repr reversed rmul rsub setitem slots str sub truediv xor annotate annotations
    classcell classdict classdictcell conditional_annotations firstlineno static_attributes
    """.split()
)
FRAME_PREFIXES = ("gi_", "cr_", "ag_", "tb_", "f_back", "f_builtins", "f_code", "f_globals", "f_locals")


def limit_resources(cpu_s: int, memory_mib: int) -> None:
    """Limits this process for good. A limit that the system does not know or refuses is left out."""
    try:
        import resource
    except ImportError:  # no such module outside POSIX
        return
    limits = {
        "RLIMIT_CPU": cpu_s,
        "RLIMIT_AS": memory_mib * 2**20,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 16,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (AttributeError, OSError, ValueError):  # macOS refuses some address-space limits
            continue


def forbidden_name(code: CodeType) -> str | None:
    """The first name in the code that reaches for the interpreter's insides, or None."""
    names = [*code.co_names, *code.co_varnames]
    for const in code.co_consts:
        if isinstance(const, CodeType):
            inner = forbidden_name(const)
            if inner is not None:
                return inner
        elif isinstance(const, tuple):  # attribute names of class patterns stand here
            names += [name for name in const if isinstance(name, str)]
    for name in names:
        dunder = name.startswith("__") and name.endswith("__") and name not in SAFE_DUNDERS
        if dunder or name.startswith(FRAME_PREFIXES):
            return name
    return None


def short_repr(value: object) -> str:
    text = repr(value)
    if len(text) > MAX_REPR_CHARS:
        raise ValueError(f"the result is longer than {MAX_REPR_CHARS} characters")
    return text


def send(channel: int, text: str) -> None:
    data = json.dumps(text).encode() + b"\n"
    while data:
        data = data[os.write(channel, data) :]


def run(source: str, expressions: list[str], channel: int) -> int:
    """Runs the source, sends the repr of each expression, returns the exit code."""
    try:
        code = compile(source, "<generated>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError) as error:  # ValueError: null bytes, lone surrogates
        send(channel, f"{type(error).__name__}: {error}"[:MAX_REPR_CHARS])
        return SYNTAX
    name = forbidden_name(code)
    if name is not None:
        send(channel, f"NameError: the name {name!r} is not allowed")
        return EXCEPTION
    safe = {name: getattr(builtins, name) for name in SAFE_NAMES}
    scope: dict[str, Any] = {"__builtins__": safe, "__name__": "generated"}
    exec(code, scope)
    for expression in expressions:
        send(channel, short_repr(eval(compile(expression, "<call>", "eval", dont_inherit=True), scope)))
    return OK


def describe(error: BaseException) -> str:
    """One line on the error. Its text may be the generated code's own, and fail in turn."""
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"[:1000]
    except BaseException:  # noqa: BLE001 (any code may run in __str__)
        return kind


def main() -> None:
    payload = json.load(sys.stdin.buffer)
    channel = os.dup(1)  # the code prints into the void; results leave by a descriptor that it cannot name
    void = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(void, standard)
    limit_resources(payload["cpu_s"], payload["memory_mib"])
    try:
        exit_code = run(payload["source"], payload["expressions"], channel)
    except MemoryError:
        exit_code = MEMORY
    except BaseException as error:  # noqa: BLE001 (SystemExit and KeyboardInterrupt are the code's doing too)
        exit_code = EXCEPTION
        send(channel, describe(error))
    os._exit(exit_code)  # no clean-up: a __del__ or a flush of the code's own must not run outside the try


if __name__ == "__main__":
    main()
