"""A process of its own world: Linux namespaces without bubblewrap, for systems that let a user make them.

The new root holds the folders that Python needs, read-only, and an empty /tmp. There is no /proc, no /dev and no
network, and the process sees no process but its own.
"""

import ctypes
import os
import select
import signal
from collections.abc import Sequence

from .limits import NOBODY, PR_SET_PDEATHSIG, end_with_parent, give_up_rights, libc_call

_CLONE = {
    "mount": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
_CLONE_USER = 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_MOUNT_SETATTR = 442  # the number of the system call on every architecture
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_READ_ONLY, _NO_SETUID, _NO_DEVICES = 1, 2, 4


def enter(visible: Sequence[str], root: str) -> None:
    """Returns in a new process that sees `visible` alone; this one waits for it and ends. `root` is an empty folder.

    Raises OSError where the system does not allow it.
    """
    parent = os.getppid()
    _new_namespaces()
    alive, held = os.pipe()
    worker = os.fork()  # the first process of the namespace: when it ends, the kernel kills all others in it
    if worker != 0:
        os.close(alive)
        end_with_parent(parent, signal.SIGKILL)
        os.waitpid(worker, 0)
        os._exit(0)
    os.close(held)
    _new_root(visible, root)
    give_up_rights()
    libc_call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if select.select([alive], [], [], 0)[0]:  # the one that waits was killed before the line above
        os._exit(1)
    os.close(alive)


def _new_namespaces() -> None:
    flags = sum(_CLONE.values())
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:  # root needs no namespace of users, and can then become nobody, whom the limit on processes binds
        try:
            libc_call("unshare", flags)
        except PermissionError:
            pass
        else:
            return
    libc_call("unshare", flags | _CLONE_USER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _new_root(visible: Sequence[str], root: str) -> None:
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "size=1m,nr_inodes=4k,mode=755")
    for path in visible:
        _show(path, root + path)
    os.mkdir(f"{root}/tmp")
    os.chmod(f"{root}/tmp", 0o1777)
    os.chdir(root)
    libc_call("pivot_root", b".", b".")  # the old root now lies on top of the new one
    libc_call("umount2", b".", _MNT_DETACH)
    os.chdir("/tmp")


def _show(path: str, target: str) -> None:
    """Binds `path` and what is mounted below it, read-only."""
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    _mount(path, target, None, _MS_BIND | _MS_REC)
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SETUID | _NO_DEVICES)
    size = ctypes.sizeof(attributes)
    libc_call("syscall", _MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, size)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    libc_call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
