"""The rows of a data set on the Hugging Face hub, or of the copy that an earlier download left here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from opdlm.data.hub import ask_hub
from opdlm.errors import PromptsError


@dataclass(frozen=True)
class HubPart:
    """Which part of a hub data set: its configuration, split and revision; the hub's own defaults where None.

    `holds`: what it is read for, as in the names of the flags: "prompts" or "problems".
    """

    config: str | None = None
    split: str | None = None
    revision: str | None = None
    holds: str = "prompts"

    @property
    def flags(self) -> list[str]:
        """The flags that were given."""
        return [self.flag(name) for name in ("config", "split", "revision") if getattr(self, name) is not None]

    def flag(self, name: str) -> str:
        """`config` -> `--prompts-config`."""
        return f"--{self.holds}-{name}"


WHOLE = HubPart()
"""The split `train` of the only configuration."""


def load_hub_set(name: str, part: HubPart) -> list[Any]:
    """Its rows. While the hub is silent, those of the copy in the cache.

    Raises PromptsError: no such data set, none here while the hub is silent, or one that cannot be read.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    answer = ask_hub(name, "dataset")
    if answer == "unknown":
        raise PromptsError(f"{name} is neither a file nor a data set of the hub; check the name")
    silent = answer != "there"
    why = "the hub cannot be reached" if answer == "unreachable" else "HF_HUB_OFFLINE keeps the hub away"
    if silent and part.revision is not None:
        raise PromptsError(
            f"{why}, so nobody can say whether the copy of {name} here is revision {part.revision}; save the data "
            f"set as a file, or leave out {part.flag('revision')}"
        )
    try:
        with _quiet(), _from_cache_alone(silent):
            return load_dataset(name, part.config, split=part.split or "train", revision=part.revision).to_list()
    except (DatasetNotFoundError, ConnectionError, OSError, ValueError) as error:
        if silent:
            raise PromptsError(
                f"{name} is no file, this part of it was not downloaded before, and {why}; check the name, or download "
                "the data set first"
            ) from error
        raise PromptsError(
            f"{name} is neither a file nor a data set of the hub that can be read ({shorten(str(error), 300)}); check "
            f"the name, {part.flag('config')}, {part.flag('split')} and {part.flag('revision')}"
        ) from error


@contextmanager
def _from_cache_alone(silent: bool) -> Iterator[None]:
    """The library asks a silent hub again and again, unless this says that there is none."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or silent
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no remarks of the libraries; afterwards as the caller had them."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from datasets.utils import logging
    from huggingface_hub import utils as hub

    level = logging.get_verbosity()
    silent, hub_silent = are_progress_bars_disabled(), hub.are_progress_bars_disabled()
    logging.set_verbosity_error()
    if not silent:
        disable_progress_bars()
    if not hub_silent:
        hub.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not silent:
            enable_progress_bars()
        if not hub_silent:
            hub.enable_progress_bars()
