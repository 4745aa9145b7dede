"""Keeps the progress bars of the model libraries out of a caller's output."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging


@contextmanager
def no_bars() -> Iterator[None]:
    """No bar while the context lasts; afterwards as the caller had it."""
    shown, hub_silent = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # of the hub too
            if hub_silent:
                disable_progress_bars()
