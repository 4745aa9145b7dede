"""The denoising in the terminal: masks as dim blocks, what was just unmasked in colour, the counts below.

By a decoding that checks drafts: these, and what became of those of the last forward.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from opdlm.config import Decoding
    from opdlm.models.gaps import GapText
    from opdlm.sampling.api import DiffusionLM

MASK_SIGN = "▒"
_PAUSE_S = 0.05  # a small model is faster than the eye
_STYLES = {"mask": "dim", "fresh": "bold green", "fixed": ""}


def view_of(
    model: "DiffusionLM", console: Console, decoding: "Decoding", gaps: "GapText | None" = None
) -> "DraftView | VerifiedView":
    """The streamer that shows how `model` writes by `decoding`. `gaps`: as in DraftView."""
    if model.drafts(decoding.kind):
        return VerifiedView(console, model.tokenizer, model.tokens.pad_token_id)
    return DraftView(console, model.tokenizer, model.tokens.mask_token_id, gaps)


class _Screen:
    """Redraws on a terminal, prints a line for each step elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._step = -1  # the first draft is what step 0 begins with
        self._whole = Group()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        if self._live is not None:
            self._live.start()

    def end(self) -> None:
        """Leaves the last picture on the screen."""
        if self._live is not None:
            self._live.update(self._whole)
            self._live.stop()

    def _draw(self, text: Text, counts: str) -> None:
        if self._live is None:
            flat = text.plain.replace("\n", "⏎")
            self.console.print(f"{self._step:4}  {flat}", markup=False, soft_wrap=True)
            return
        # While it grows, its end is what changes; all of it stays when it is complete.
        lines = text.wrap(self.console, self.console.width)
        below = len(Text(counts).wrap(self.console, self.console.width))
        room = max(1, self.console.height - 2 - below)
        shown = Text("\n").join(lines[-room:])
        self._whole = Group(text, Text(counts, style="dim"))
        self._live.update(Group(shown, Text(counts, style="dim")), refresh=True)
        time.sleep(_PAUSE_S)


class VerifiedView(_Screen):
    """A streamer for a lossless model: accepted drafts in colour, refused ones struck through, the next ones dim.

    Elsewhere than on a terminal: refused ones between ~ and ~, the next ones in brackets.
    """

    def __init__(self, console: Console, tokenizer: "PreTrainedTokenizerBase", front: int) -> None:
        """`front`: any token, see `decode_inside`."""
        super().__init__(console)
        self.tokenizer, self.front = tokenizer, front
        self._before, self._offered = list[int](), list[int]()
        self._held, self._checked = 0, 0

    def put_verified(self, ids: Any, drafts: Any) -> None:
        """[L] verified response ids, [d] drafts; tensors."""
        self._put(ids.tolist(), drafts.tolist())

    def put_draft(self, ids: Any) -> None:
        """[L] verified response ids; a tensor."""
        self._put(ids.tolist(), [])

    def put(self, ids: Any) -> None:
        """[L] final response ids; a tensor."""
        self._put(ids.tolist(), [], final=True)

    def _put(self, ids: list[int], drafts: list[int], final: bool = False) -> None:
        self._step += 1
        new = ids[len(self._before) :]
        held = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(new, self._offered, strict=False))))
        # Behind the end of a text drafts are neither right nor wrong.
        reached = self._offered[: len(new)] if final else self._offered
        self._held, self._checked = self._held + held, self._checked + len(reached)
        text = Text(self._decode(self._before))
        text.append(self._decode(new[:held]), "bold green")
        if not final:
            self._append(text, self._offered[held:], "red strike", "~~")
        text.append(self._decode(new[held:]))
        self._append(text, drafts, "dim", "[]")
        self._before, self._offered = ids, drafts
        rate = len(ids) / max(1, self._step)
        counts = f"forward {self._step}, {len(ids)} tokens, {rate:.2f} tokens per forward"
        self._draw(text, f"{counts}, {self._held} of {self._checked} drafts accepted")

    def _append(self, text: Text, ids: list[int], style: str, signs: str) -> None:
        if ids:
            shown = self._decode(ids)
            text.append(shown if self.console.is_terminal else f"{signs[0]}{shown}{signs[1]}", style)

    def _decode(self, ids: list[int]) -> str:
        from opdlm.models.tokens import decode_inside

        return decode_inside(self.tokenizer, self.front, ids) if ids else ""


class DraftView(_Screen):
    """A streamer (`put_draft`, `put`, `end`) for a block-diffusion model."""

    def __init__(
        self,
        console: Console,
        tokenizer: "PreTrainedTokenizerBase",
        mask_token_id: int,
        gaps: "GapText | None" = None,
    ) -> None:
        """`gaps`: the text that is filled; what it gives is shown as it was written."""
        super().__init__(console)
        self.tokenizer, self.mask, self.gaps = tokenizer, mask_token_id, gaps
        self._before: list[int] = []

    def put_draft(self, ids: Any) -> None:
        """[L] response ids, the mask token where nothing is committed; a tensor."""
        self._step += 1
        self._show(ids.tolist())

    def put(self, ids: Any) -> None:
        """[L] final response ids; a tensor."""
        self._step += 1
        self._show(ids.tolist())

    def _show(self, ids: list[int]) -> None:
        text, counts = self._coloured(ids), self._counts(ids)
        self._before = ids
        self._draw(text, counts)

    def _counts(self, ids: Sequence[int]) -> str:
        fixed = sum(token != self.mask for token in ids)
        return f"step {self._step}, {fixed} tokens, {fixed / max(1, self._step):.2f} tokens per forward"

    def _coloured(self, ids: Sequence[int]) -> Text:
        text, begin = Text(), 0
        for given, part in [(None, ids)] if self.gaps is None else self.gaps.pieces(ids):
            if given is not None:
                text.append(given)
            for kind, run in self._runs(part, begin) if given is None else ():
                text.append(MASK_SIGN * len(run) if kind == "mask" else self._decode(run), style=_STYLES[kind])
            begin += len(part)
        return text

    def _runs(self, ids: Sequence[int], begin: int) -> Iterator[tuple[str, list[int]]]:
        """Neighbours of one kind together: mask, fresh (unmasked in the last step), fixed. The first is at `begin`."""
        for kind, members in groupby(enumerate(ids, begin), key=lambda item: self._kind(*item)):
            yield kind, [token for _, token in members]

    def _kind(self, position: int, token: int) -> str:
        if token == self.mask:
            return "mask"
        known = position < len(self._before) and self._before[position] == token
        return "fixed" if known else "fresh"

    def _decode(self, run: list[int]) -> str:
        from opdlm.models.tokens import decode_inside

        return decode_inside(self.tokenizer, self.mask, run)
