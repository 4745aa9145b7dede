"""The ways to keep a model's program from the user: what each holds, and its command line."""

import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opdlm.evals import sandboxed

Kind = Literal["bubblewrap", "namespaces", "limits"]

_PACKAGE = Path(sandboxed.__file__).parent
_START = "import sys; sys.path.insert(0, sys.argv[1]); from sandboxed.child import main; main()"
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/nix/store", "/gnu/store")
_APART = (
    "no network, no sight of files or other processes, an empty /tmp; processor time, memory and processes are limited"
)
_DESCRIPTIONS: dict[Kind, str] = {
    "bubblewrap": f"programs run under bubblewrap: {_APART}",
    "namespaces": f"programs run in Linux namespaces: {_APART}",
    "limits": "programs run UNCONFINED, as you allowed: they can read your files and the answers, and use the network; "
    "only processor time, memory and processes are limited",
}


@dataclass(frozen=True)
class Confinement:
    """What keeps a program from the user's files, network and processes.

    Attributes:
        kind: "bubblewrap" and "namespaces" keep it from all three, "limits" from none.
    """

    kind: Kind

    def __str__(self) -> str:
        """One line that says what holds."""
        return _DESCRIPTIONS[self.kind]

    def command(self) -> list[str]:
        """The command line of a child. It holds nothing about a problem, for a program might read it."""
        if self.kind == "bubblewrap":
            return [*_bubblewrap(), *_python("/opdlm")]
        return _python(str(_PACKAGE.parent))


def visible() -> list[str]:
    """Files and folders that Python needs: the interpreter, its standard library, shared libraries."""
    base = Path(sys.base_prefix).resolve()
    inside = [_interpreter(), Path(os.__file__).parent, sysconfig.get_config_var("DESTSHARED") or base, base / "lib"]
    found = [path for path in dict.fromkeys([*_LIBRARIES, *map(str, inside)]) if Path(path).exists()]
    return [path for path in found if not any(_below(path, other) for other in found)]


def _below(path: str, other: str) -> bool:
    return path != other and Path(path).is_relative_to(other)


def _interpreter() -> Path:
    """Python itself, not the link to it in a virtual environment."""
    return Path(sys.executable).resolve()


def _python(folder: str) -> list[str]:
    return [str(_interpreter()), "-I", "-S", "-c", _START, folder]


def _bubblewrap() -> list[str]:
    tool = shutil.which("bwrap")
    assert tool is not None
    if os.getuid() == 0:  # root becomes nobody inside, whom the limit on processes binds; that needs two rights
        users = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        users += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        users = ["--unshare-all"]
    parents = sorted({str(parent) for path in visible() for parent in Path(path).parents} - {"/"})
    binds = [word for path in parents for word in ("--dir", path, "--chmod", "0755", path)]
    binds += [word for path in visible() for word in ("--ro-bind", path, path)]
    package = ["--ro-bind", str(_PACKAGE), f"/opdlm/{_PACKAGE.name}"]
    private = ["--dev", "/dev", "--tmpfs", "/tmp", "--chmod", "1777", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    return [tool, *users, "--die-with-parent", "--new-session", *binds, *package, *private]
