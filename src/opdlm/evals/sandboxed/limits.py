"""Limits that a process puts on itself for good, and a keeper that outlives what it keeps."""

import ctypes
import os
import signal
import sys
import time
from typing import Any

NOBODY = 65534
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38


def limit_resources(cpu_s: int, memory_mib: int) -> None:
    """Limits this process and its children. A limit that the system does not know or refuses is left out."""
    import resource

    limits = {
        "RLIMIT_CPU": cpu_s,
        "RLIMIT_AS": memory_mib * 2**20,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 32,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (AttributeError, OSError, ValueError):  # macOS refuses some address-space limits
            continue


def libc_call(name: str, *arguments: Any) -> int:
    """A function of the C library. Raises OSError where it fails."""
    library = ctypes.CDLL(None, use_errno=True)
    result = getattr(library, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def give_up_rights() -> None:
    """Root becomes nobody, no capability is left, and no program can bring any back."""
    libc_call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    libc_call("capset", header, (ctypes.c_uint32 * 6)())


def end_with_parent(parent: int, by: int) -> None:
    """This process gets the signal `by` when its parent, the process `parent`, ends or has ended (Linux)."""
    if sys.platform == "linux":
        libc_call("prctl", PR_SET_PDEATHSIG, int(by), 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), by)


def fork_below_a_keeper() -> None:
    """Returns in a new process. This one waits for it or for SIGTERM, then kills whatever descends from it, and ends.

    Orphans fall to the keeper (Linux), also those that made a session of their own. Kept under `limits` alone: a
    namespace does this better.
    """
    if sys.platform == "linux":  # elsewhere the process group is all that can be killed
        libc_call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    parent = os.getppid()
    worker = os.fork()
    if worker == 0:
        return

    def stop(*_: object) -> None:
        if sys.platform == "linux":
            _kill_descendants()
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    end_with_parent(parent, signal.SIGTERM)
    os.waitpid(worker, 0)
    stop()


def _kill_descendants(patience_s: float = 5.0) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # none are left
            return
        time.sleep(0.002)


def _children() -> list[int]:
    me, found = str(os.getpid()), []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", errors="replace") as stat:
                fields = stat.read().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if fields[1] == me:
            found.append(int(pid))
    return found
