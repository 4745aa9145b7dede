"""Where a model runs, and what memory there is."""

import os
import sys
from pathlib import Path

import torch

from opdlm.errors import UsageError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MEMINFO, _STATM = Path("/proc/meminfo"), Path("/proc/self/statm")


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes a GPU if there is one. Raises UsageError if it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name!r}; use cpu, cuda, cuda:N, mps or auto") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise UsageError(f"device {name!r} is not available on this machine; use --device cpu or auto")
    return device


def pick_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The number type called `name`; "auto" is bfloat16 on a CUDA GPU, else float32. UsageError if there is none."""
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise UsageError(f"there is no dtype {name!r}; choose auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on the device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if _MEMINFO.is_file():  # Linux; what the system could give, its file cache included
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return 1024 * int(fields["MemAvailable"].split()[0])
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def room_for(copy: int) -> bool:
    """Whether the machine's memory has room for a copy that stays, when this process comes to its peak again."""
    free = free_bytes(torch.device("cpu"))
    if free is None or not _STATM.is_file():
        return True
    resident = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return free - max(0, peak_process_bytes() - resident) >= copy


def peak_process_bytes() -> int:
    """Largest resident size of this process so far (ru_maxrss is in KiB on Linux, in bytes on macOS)."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
