"""Live lines on terminals of any width: what matters most is never cut off."""

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from opdlm.cli.views import ConversionView
from opdlm.cli.watch import DraftView
from support import MASK, tiny_tokenizer


def metrics(rollout: int) -> Any:
    total = SimpleNamespace(tokens_trained=12_345_678)
    shown = {"loss": 1.23456, "tokens_trained": 1200, "tokens_per_forward": 1.53, "seconds": {"all": 3.0}}
    shown["validation"] = None
    return SimpleNamespace(rollout=rollout, rollouts=2000, total=total, **shown)


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (140, "loss 1.235  12,345,678 tokens  1.53 tokens/forward  400 tokens/s  1 h 33 min left"),
        (80, "loss 1.235  1.53 tokens/forward  1 h 33 min left"),
        (60, "loss 1.235  1 h 33 min left"),
        (40, "loss 1.235"),
        (29, ""),
    ],
)
def test_the_progress_line_keeps_its_counter(width: int, shown: str) -> None:
    """Else a terminal of 80 columns would show everything but how far the training is."""
    screen = io.StringIO()
    view = ConversionView(Console(file=screen, force_terminal=True, width=width))
    view._live.update(view._task, total=2000)
    view.step(metrics(123))
    view.console.print(view._live.get_renderable())
    line = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).rstrip()
    assert "\n" not in line
    assert "rollout  123/2000" in line
    assert line.endswith("0:00:00")
    assert shown in line
    assert "…" not in line


def test_a_text_longer_than_the_screen_shows_its_end() -> None:
    """Else nobody would see what is being written, nor the counts, once a text is longer than the terminal."""
    screen, tokenizer = io.StringIO(), tiny_tokenizer(mask=True)
    view = DraftView(Console(file=screen, force_terminal=True, width=20, height=6), tokenizer, MASK)
    ids = tokenizer("\n".join(f"line{i}" for i in range(9)), add_special_tokens=False)["input_ids"]
    view.put_draft(torch.tensor([*ids, MASK, MASK]))
    drawn = screen.getvalue()
    assert "line8" in drawn
    assert "step 0" in drawn
    assert "line0" not in drawn
    view.end()
    assert "line0" in screen.getvalue()
