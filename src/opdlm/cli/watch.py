"""The denoising in the terminal: masks as dim blocks, what was just unmasked in colour, the counts below."""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from opdlm.models.gaps import GapText

MASK_SIGN = "▒"
_PAUSE_S = 0.05  # a small model is faster than the eye
_STYLES = {"mask": "dim", "fresh": "bold green", "fixed": ""}


class DraftView:
    """A streamer (`put_draft`, `put`, `end`): redraws on a terminal, prints each draft as a line elsewhere."""

    def __init__(
        self,
        console: Console,
        tokenizer: "PreTrainedTokenizerBase",
        mask_token_id: int,
        gaps: "GapText | None" = None,
    ) -> None:
        """`gaps`: the text that is filled; what it gives is shown as it was written."""
        self.console, self.tokenizer, self.mask, self.gaps = console, tokenizer, mask_token_id, gaps
        self._before: list[int] = []
        self._step = -1  # the first draft is what step 0 begins with
        self._whole = Group()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        if self._live is not None:
            self._live.start()

    def put_draft(self, ids: Any) -> None:
        """[L] response ids, the mask token where nothing is committed; a tensor."""
        self._step += 1
        self._show(ids.tolist())

    def put(self, ids: Any) -> None:
        """[L] final response ids; a tensor."""
        self._step += 1
        self._show(ids.tolist())

    def end(self) -> None:
        """Leaves the last picture on the screen."""
        if self._live is not None:
            self._live.update(self._whole)
            self._live.stop()

    def _show(self, ids: list[int]) -> None:
        text, counts = self._coloured(ids), self._counts(ids)
        self._before = ids
        if self._live is None:
            flat = text.plain.replace("\n", "⏎")
            self.console.print(f"{self._step:4}  {flat}", markup=False, soft_wrap=True)
            return
        # While it grows, its end is what changes; all of it stays when it is complete.
        lines = text.wrap(self.console, self.console.width)
        shown = Text("\n").join(lines[max(0, len(lines) - self.console.height + 3) :])
        self._whole = Group(text, Text(counts, style="dim"))
        self._live.update(Group(shown, Text(counts, style="dim")), refresh=True)
        time.sleep(_PAUSE_S)

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
