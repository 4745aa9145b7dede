"""What a launcher (torchrun, accelerate launch) says of the processes that it started, in their environment."""

import os
from collections.abc import Mapping

_SAYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # all of them, or it was another program


def number(environment: Mapping[str, str] = os.environ) -> int:
    """Of this process, from 0; 0 where it is alone."""
    return int(environment["RANK"]) if count(environment) > 1 else 0


def count(environment: Mapping[str, str] = os.environ) -> int:
    """Of the processes of the run; 1 where no launcher started this one."""
    return int(environment["WORLD_SIZE"]) if all(name in environment for name in _SAYS) else 1


def here(environment: Mapping[str, str] = os.environ) -> int:
    """Number of this process among those of its machine, from 0."""
    return int(environment["LOCAL_RANK"]) if count(environment) > 1 else 0


def other_engine(environment: Mapping[str, str] = os.environ) -> str | None:
    """What accelerate is configured to divide a model with, and what nobody here reads."""
    engines = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
    return next((name for name, switch in engines.items() if environment.get(switch, "").lower() == "true"), None)


def speaks() -> bool:
    """Whether this process prints what all of them would say: the first one alone."""
    return number() == 0
