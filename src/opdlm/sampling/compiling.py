"""Compiles one grammar, and tries it before in a process of its own.

Some texts of a few lines overflow llguidance's stack, or keep it busy for hours before it looks at any of its own
limits (the first transitions of its lexer have none: a number's `multipleOf`, an intersection of long loops). Neither
can be caught where it happens. So it happens first in a process with little stack, time and memory, which is gone then.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opdlm.errors import UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON on one line, as Python's json.dumps writes it: no room for endless white space, and the most is forced."""

_CPU_S = 1
_STACK_BYTES = 2**20
"""Threads have 8 MiB by default, and 2 where the process has no limit: what fits here fits there."""
_MEMORY_BYTES = 2**31
_DEEP = f"its parts are nested, or refer to each other, too deeply for a stack of {_STACK_BYTES >> 20} MiB"
_REASONS = {"SIGXCPU": f"it takes more than {_CPU_S} s to prepare", "SIGSEGV": _DEEP, "SIGBUS": _DEEP}
"""By the signal that ended the process that tried."""


def compiled(tables: "LLTokenizer", kind: str, text: str) -> "LLMatcher":
    """At the beginning of a text. UsageError where it is not valid, too complex, or no text is one of its texts."""
    from llguidance import LLMatcher

    try:
        if kind == "json_schema":
            source = LLMatcher.grammar_from_json_schema(text, defaults=_LAYOUT)  # type: ignore[arg-type]
        elif kind == "regex":
            source = LLMatcher.grammar_from_regex(text)
        else:
            source = LLMatcher.grammar_from_lark(text)
    except ValueError as error:
        raise UsageError(f"setting {kind}: {one_line(str(error))}; correct it") from error
    failed, messages = LLMatcher.validate_grammar_with_warnings(source, tables)
    if failed:
        raise UsageError(f"setting {kind}: {one_line(messages[0])}; correct it")
    made = LLMatcher(tables, source, log_level=0)
    if made.is_error():
        raise UsageError(f"setting {kind}: {one_line(made.get_error())}; make it simpler")
    _check_begins(kind, made.deep_copy())
    return made


def _check_begins(kind: str, matcher: "LLMatcher") -> None:
    """Whether anything can be written, behind what is forced; llguidance finds that out at the first mask."""
    matcher.consume_tokens(matcher.compute_ff_tokens())
    matcher.compute_bitmask()
    if not matcher.is_error():
        return
    reason = one_line(matcher.get_error())
    if reason.startswith("NoExtension"):
        raise UsageError(f"setting {kind}: no text can be like this, what it asks for contradicts itself; correct it")
    raise UsageError(f"setting {kind}: {reason}; make it simpler")


def one_line(message: str) -> str:
    """llguidance draws where the mistake is, over several lines; the first says what it is."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return " ".join([lines[0].rstrip(":"), *(f"({one.removeprefix('error:').strip()})" for one in errors)])


class Trial:
    """The process that tries grammars for one tokenizer; after one that it died of there is a new one."""

    def __init__(self, tokenizer: Mapping[str, Any]) -> None:
        """`tokenizer`: arguments of `LLTokenizer`."""
        self._tokenizer, self._lock = dict(tokenizer), threading.Lock()
        self._process = self._started()  # reads the tokenizer while this one does

    def check(self, kind: str, text: str) -> None:
        """UsageError if it cannot be compiled here without harm; other mistakes are not looked for."""
        with self._lock:
            process = self._process
            assert process.stdout is not None
            with suppress(BrokenPipeError):
                _tell(process, [kind, text])
            if process.stdout.readline():
                return
            status, self._process = process.wait(), self._started()
        ended_by = signal.Signals(-status).name if status < 0 else ""
        reason = _REASONS.get(ended_by, f"it needs more than {_MEMORY_BYTES >> 30} GiB to prepare")
        raise UsageError(f"setting {kind}: {reason}; make it simpler")

    def _started(self) -> "subprocess.Popen[str]":
        # Its own session: a Ctrl-C is not for it. Its path is ours, without the folder where we happen to stand.
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        words = [sys.executable, "-m", __spec__.name]
        process = subprocess.Popen(words, **pipes, env=env, text=True, encoding="utf-8", start_new_session=True)
        weakref.finalize(self, _end, process)
        _tell(process, self._tokenizer)
        return process


def _tell(process: "subprocess.Popen[str]", what: Any) -> None:
    """One line of JSON."""
    assert process.stdin is not None
    process.stdin.write(f"{json.dumps(what)}\n")
    process.stdin.flush()


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    with process:
        pass


def _try_all() -> None:
    """What the process does: a line for each grammar that it survives."""
    from llguidance import LLTokenizer

    tables = LLTokenizer(**json.loads(sys.stdin.readline()))
    threading.stack_size(_STACK_BYTES)
    for line in sys.stdin:
        _limit()
        thread = threading.Thread(target=_try, args=[tables, *json.loads(line)])
        thread.start()
        thread.join()
        sys.stdout.write("done\n")
        sys.stdout.flush()


def _limit() -> None:
    """What this process may take from now on."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    limits = {"RLIMIT_CPU": int(time.process_time()) + 1 + _CPU_S, "RLIMIT_CORE": 0}
    if sys.platform == "linux":  # macOS refuses this one
        limits["RLIMIT_AS"] = _MEMORY_BYTES
    for name, most in limits.items():
        which = getattr(resource, name)
        resource.setrlimit(which, (most, resource.getrlimit(which)[1]))


def _try(tables: "LLTokenizer", kind: str, text: str) -> None:
    with suppress(UsageError):
        compiled(tables, kind, text)


if __name__ == "__main__":
    _try_all()
