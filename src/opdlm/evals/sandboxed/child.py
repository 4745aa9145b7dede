"""The child's half of `sandbox.py`. It confines itself and plays one of two roles, and is believed in one of them only.

program: runs the code that a model wrote, then answers requests to call it. Nothing that it says is trusted.
tests: runs the tests of a problem. No code of the model runs there, so its verdict holds.

One JSON object a line each way. The first line in is the request, see `main`. Starting quickly matters here, for each
program has a process of its own: modules that only one role needs are imported there.
"""

import json
import os
import sys
from typing import Any

from .limits import fork_below_a_keeper, give_up_rights, limit_resources
from .messages import MAX_BYTES, failure


def main() -> None:
    """Reads the request: confinement, visible, root, cpu_s, memory_mib, role, and what the role needs."""
    requests = os.fdopen(os.dup(0), "rb")
    channel = os.dup(1)
    void = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # the code reads and prints into the void
        os.dup2(void, standard)
    os.close(void)
    request = json.loads(requests.readline())
    if request["role"] == "program":
        from .program import serve as play
    else:
        from .tests import run as play
    _confine(request)
    sys.dont_write_bytecode = True
    limit_resources(request["cpu_s"], request["memory_mib"])

    def send(message: dict[str, Any]) -> None:
        line = json.dumps(message).encode()
        if len(line) >= MAX_BYTES:
            raise ValueError(f"the result is longer than {MAX_BYTES} bytes")
        line += b"\n"
        while line:
            line = line[os.write(channel, line) :]

    try:
        play(request, requests, send)
    except BaseException as error:  # noqa: BLE001 (SystemExit and KeyboardInterrupt are the code's doing too)
        send(failure(error))
    os._exit(0)  # no clean-up: a __del__ or an atexit of the code's own must not run


def _confine(request: dict[str, Any]) -> None:
    if request["confinement"] == "namespaces":
        from . import namespaces

        namespaces.enter(request["visible"], request["root"])
    elif request["confinement"] == "bubblewrap":
        give_up_rights()
    else:
        fork_below_a_keeper()
