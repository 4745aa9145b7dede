"""Live lines on terminals of any width: what matters most is never cut off."""

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from opdlm.cli.views import ConversionView
from opdlm.cli.watch import DraftView, VerifiedView
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


# Verified text and drafts after each forward: two of three drafts hold, then none, then all, up to the text's end.
VERIFIED = (("", ""), ("a", "bcx"), ("abcd", "yz"), ("abcde", "fgh"))


def verified(console: Console) -> VerifiedView:
    """A view that has seen all of it."""
    tokenizer = tiny_tokenizer()

    def ids(text: str) -> torch.Tensor:
        return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)

    view = VerifiedView(console, tokenizer, 0)
    for known, drafts in VERIFIED:
        view.put_verified(ids(known), ids(drafts))
    view.put(ids("abcdefg"))
    return view


def test_drafts_in_a_pipe() -> None:
    """Else a log would not say which tokens are known, which are guessed, and which guesses were wrong."""
    out = io.StringIO()
    verified(Console(file=out, width=10_000)).end()
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert lines == ["0", "1  a[bcx]", "2  abc~x~d[yz]", "3  abcd~yz~e[fgh]", "4  abcdefg"]
    assert "\x1b" not in out.getvalue()


def test_drafts_on_a_terminal() -> None:
    """Else nobody would see what is accepted and what is refused, or the last picture would keep a refused draft."""
    screen = io.StringIO()
    view = verified(Console(file=screen, force_terminal=True, width=80, color_system="standard"))
    drawn = screen.getvalue()
    assert "\x1b[1;32mbc\x1b[0m\x1b[9;31mx\x1b[0md\x1b[2myz" in drawn
    assert "forward 2, 4 tokens, 2.00 tokens per forward, 2 of 3 drafts accepted" in drawn
    assert "forward 4, 7 tokens, 1.75 tokens per forward, 4 of 7 drafts accepted" in drawn
    screen.truncate(0)
    view.end()
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "abcdefg" in last


@pytest.mark.parametrize(("width", "height"), [(20, 6), (7, 12), (30, 3)])
def test_drafts_on_a_narrow_terminal(width: int, height: int) -> None:
    """Else the counts, or the end of the text, where drafts stand, would be cut off."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=height)
    view = VerifiedView(console, tiny_tokenizer(), 0)
    text = torch.tensor(
        tiny_tokenizer()("\n".join(f"line{i}" for i in range(9)), add_special_tokens=False)["input_ids"]
    )
    view.put_verified(text[:-1], text[-1:])
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "line8" in drawn
    assert "line0" not in drawn
    assert "forward" in drawn
    assert all(len(line) <= width for line in drawn.replace("\r", "\n").split("\n"))
    view.end()
    assert "line0" in screen.getvalue()
