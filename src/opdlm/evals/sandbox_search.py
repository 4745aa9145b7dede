"""How far from the user a model's program can run on this system: found by trying, strongest first."""

import functools
import os
import shutil
import sys
import time

from opdlm.errors import UnconfinedCodeError, UsageError
from opdlm.evals.sandbox_confinement import Confinement, Kind
from opdlm.evals.sandbox_process import Child, ChildEndedError, program_request


def confinement(*, allow_unconfined: bool = False) -> Confinement:
    """The strongest confinement that works here.

    Args:
        allow_unconfined: take limits on resources alone where the system offers nothing better.

    Raises:
        UnconfinedCodeError: there is none, and it was not allowed to do without.
        UsageError: the system cannot run programs apart at all (Windows).
    """
    if os.name != "posix":
        raise UsageError("programs are graded on Linux and macOS alone; use one of them, or WSL")
    found = _strongest()
    if found is None and not allow_unconfined:
        raise UnconfinedCodeError(
            "this system cannot confine a model's programs; install bubblewrap (`apt install bubblewrap`), in a "
            "container allow user namespaces, or run them with your own rights: --allow-unconfined-code"
        )
    return found or Confinement("limits")


@functools.cache
def _strongest() -> Confinement | None:
    """Each is tried with a program of one line: that a tool is installed does not mean that it may do its work."""
    if sys.platform != "linux":
        return None
    kinds: tuple[Kind, ...] = ("bubblewrap", "namespaces") if shutil.which("bwrap") else ("namespaces",)
    return next((made for made in map(Confinement, kinds) if works(made)), None)


def works(confinement: Confinement) -> bool:
    """Whether a program of one line runs under it."""
    request = program_request("", prelude="", timeout_s=20.0, memory_mib=256)
    with Child(confinement, request, time.monotonic() + 20.0) as child:
        try:
            return child.line() == {"ready": True}
        except ChildEndedError:
            return False
