"""Keeps rows of the engine to their grammars: whatever is committed, some valid text has all of it.

A step proposes, for each row, one draft of the whole block that the grammar allows from left to right: where nothing is
committed a token that is picked among those allowed behind the tokens before it, and what is committed as it is. A rule
may then commit any of the draft's tokens, in any order: the rest of the draft is a completion, and the row keeps it as
its witness. If the next draft cannot be continued through what is committed behind a gap, the witness stands in for it.

What is allowed at a position hangs on the tokens picked before it. So masks and picks take turns, all positions at
once, until the picks are those of their own masks: every turn settles at least one more position.

Tokens that the grammar forces behind what is known are committed at once, without a forward.

Shape letters: B slots, n positions, W words of 32 tokens, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from opdlm.core.limits import limited, limited_proposals, unpacked
from opdlm.core.propose import Proposals
from opdlm.core.types import NEVER
from opdlm.sampling.request import Grammar, Request
from opdlm.sampling.slots import Slots

if TYPE_CHECKING:
    from llguidance import LLMatcher

Choose = Callable[[torch.Tensor], torch.Tensor]
"""Logits [B, n, V] -> tokens [B, n]; each position by itself."""


@dataclass
class Row:
    """One text and its grammar.

    Attributes:
        matcher: has taken the tokens before `known`.
        known: position behind what is known without a gap. end: position behind the last one to write.
        stop_ids: tokens that end the text. ended: one of them has come.
        witness: token of each position of the last draft that the grammar allows as a whole.
    """

    matcher: "LLMatcher"
    known: int
    end: int
    stop_ids: Sequence[int]
    ended: bool = False
    witness: dict[int, int] = field(default_factory=dict)

    def follow(self, tokens: Mapping[int, int]) -> dict[int, int]:
        """Take what is known of `tokens`, by position, and what is forced behind it; returns what was forced."""
        forced: list[int] = []
        new = {}
        while not self.ended and self.known < self.end:
            if self.known not in tokens:
                forced = forced or self._forced()
                if not forced:
                    break
                new[self.known] = forced[0]
            token, forced = tokens.get(self.known, new.get(self.known, -1)), forced[1:]
            self.ended = token in self.stop_ids
            if not self.ended and not self.matcher.consume_token(token):
                break  # the matcher says why
            self.known += 1
        return new

    def _forced(self) -> list[int]:
        """Tokens that alone can come next. Where the text is complete, a stop token: of several the first."""
        return self.matcher.compute_ff_tokens() or ([self.stop_ids[0]] if self.matcher.is_stopped() else [])

    def reach(self, draft: Sequence[int], bits: np.ndarray) -> tuple[int, int]:
        """How many tokens of a draft are allowed, by its masks [n, W]; and at which it ends, n if it does not."""
        for index, token in enumerate(draft):
            if not (int(bits[index, token // 32]) >> (token % 32)) & 1:
                return index, len(draft)
            if token in self.stop_ids:
                return len(draft), index
        return len(draft), len(draft)


class Constraining:
    """The constrained rows among the slots of an engine."""

    def __init__(self, slots: Slots) -> None:
        from llguidance import LLExecutor

        self.slots = slots
        self._rows: dict[int, Row] = {}  # by the number of their request
        self._words = 0
        self._executor = LLExecutor()

    # --- rows come and advance ----------------------------------------------------------------------------------

    def open(self, slots: Sequence[int]) -> None:
        """Rows that begin in these slots. What the grammar forces at their front is written at once."""
        held = {one[0] for one in self.slots.held if one is not None}
        self._rows = {number: row for number, row in self._rows.items() if number in held}
        new = {}
        for slot in slots:
            number, request = self.slots.held[slot] or (-1, None)
            if request is None or request.grammar is None:
                continue
            self._words = request.grammar.words
            self._rows[number], new[slot] = self._begun(request, request.grammar)
        self._write(new)
        self._move({slot: self._row(slot).known for slot in new})

    def _begun(self, request: Request, grammar: Grammar) -> tuple[Row, dict[int, int]]:
        """A row, and what is forced at its front.

        The token with which it ends stays open: only a forward hands a row out.
        """
        row = Row(grammar.matcher(), request.first, request.end - 1, grammar.stop_ids)
        new = row.follow({})
        if request.stop_strings and (stop := self._stop(request, list(new.values()))) is not None:
            row = Row(grammar.matcher(), request.first, stop, grammar.stop_ids)
            new = row.follow({})
        if row.ended:
            del new[row.known - 1]
            row.known, row.ended = row.known - 1, False
        row.end = request.end
        return row, new

    def _stop(self, request: Request, front: Sequence[int]) -> int | None:
        """Position of the token of the front that completes a stop string."""
        ids = torch.tensor([[*request.ids[: request.first], *front]], device=self.slots.state.ids.device)
        position = torch.arange(request.first, ids.shape[1], device=ids.device)[None]
        found = self.slots.stop_strings(tuple(request.stop_strings)).completed(ids, position, position[:, 0])
        return request.first + found[0].tolist().index(True) if found.any() else None

    def _move(self, known: Mapping[int, int]) -> None:
        """Rows begin with the block in which the first position is open; what is before it goes into the cache."""
        slots, size = self.slots, self.slots.size
        before = slots.state.start.tolist()
        starts = {slot: position // size * size for slot, position in known.items()}
        for slot, start in starts.items():
            slots.state.start[slot] = start
        slots.lead += max((start - before[slot] for slot, start in starts.items()), default=0)
        slots.last_start = max([slots.last_start, *starts.values()])

    def follow(self, position: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Take what was committed at `position` [B, n], and write what it forces behind that, or further on.

        Returns how many tokens were forced, [B] int64, and the most of these numbers.
        """
        state = self.slots.state
        committed = state.commit_step.gather(1, position) != NEVER
        ids = torch.where(committed, state.ids.gather(1, position), -1)
        host = torch.cat([position[:, :1], ids], 1).tolist()
        new = {}
        for slot, row in self._held():
            begin, *tokens = host[slot]
            new[slot] = row.follow({begin + i: token for i, token in enumerate(tokens) if token >= 0})
            self._end_failed(slot, row)
        self._write(new)
        counts = [len(new.get(slot, ())) for slot in range(len(host))]
        return torch.tensor(counts, device=position.device), max(counts)

    def _write(self, new: Mapping[int, Mapping[int, int]]) -> None:
        """Commit tokens: slot -> position -> token."""
        flat = [(slot, position, token) for slot, row in new.items() for position, token in row.items()]
        if not flat:
            return
        state = self.slots.state
        slot, position, token = torch.tensor(flat, device=state.ids.device).T
        state.ids[slot, position] = token
        state.commit_step[slot, position] = (
            (state.step[slot] - 1).clamp(0, NEVER - 1).short()
        )  # that of the step before
        state.confidence[slot, position] = 1.0
        state.top_ids[slot, position] = token[:, None]  # there is no alternative
        state.top_log_probability[slot, position] = 0.0

    def _held(self) -> list[tuple[int, Row]]:
        """(slot, row) of all that are being written and go on."""
        held = ((slot, one) for slot, one in enumerate(self.slots.held) if one is not None)
        rows = [(slot, self._rows[one[0]]) for slot, one in held if one[1].grammar is not None]
        return [(slot, row) for slot, row in rows if not row.ended]

    def _row(self, slot: int) -> Row:
        held = self.slots.held[slot]
        assert held is not None
        return self._rows[held[0]]

    # --- what is allowed ----------------------------------------------------------------------------------------

    def checked(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [B, n, V] behind the known text and each of its drafts, minus infinity where no token is allowed."""
        count = logits.shape[1]
        drafts = {slot: _in_order(row.witness, row.known, count) for slot, row in self._held()}
        bits = self._bits(drafts, dict.fromkeys(drafts, 0), logits.shape[:2])
        return limited(logits, unpacked(bits.to(logits.device), logits.shape[-1]))

    def proposals(
        self, logits: torch.Tensor, position: torch.Tensor, masked: torch.Tensor, choose: Choose
    ) -> tuple[Proposals, torch.Tensor]:
        """As `draft`; and `masked` without what stands behind a token that would end the text."""
        token, within, behind = self.draft(logits, position, masked, choose)
        masked = masked & ~behind
        return limited_proposals(logits, within, token, masked), masked

    def draft(
        self, logits: torch.Tensor, position: torch.Tensor, masked: torch.Tensor, choose: Choose
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A draft of each row that its grammar allows as a whole.

        Args:
            logits: [B, n, V]. position: [B, n], consecutive. masked: [B, n] bool, what `choose` may pick.

        Returns:
            token: [B, n] int64: what is picked where `masked`, else the row's own.
            within: [B, n, V] the logits, minus infinity where the draft before allows no token.
            behind: [B, n] bool: positions behind a token that ends the draft.
        """
        given = self.slots.state.ids.gather(1, position)
        host = torch.cat([position[:, :1], masked.long()], 1).tolist()
        begin, open_ = [row[0] for row in host], [row[1:] for row in host]
        pinned: dict[int, list[int]] = {}
        token = torch.where(masked, choose(logits), given)
        while True:
            tokens = token.tolist()
            bits, ends = self._along(tokens, begin, open_, pinned)
            allowed = unpacked(bits.to(logits.device), logits.shape[-1])
            within = limited(logits, allowed)
            picked = choose(within)
            # A random number at the very end of the distribution falls on its last token, allowed or not.
            legal = allowed.gather(-1, picked[..., None])[..., 0]
            picked = torch.where(masked, torch.where(legal, picked, within.argmax(-1)), given)
            for slot, front in pinned.items():
                picked[slot, : len(front)] = torch.tensor(front, device=picked.device)
            if torch.equal(picked, token):
                break
            token = picked
        for slot, row in self._held():
            row.witness = {begin[slot] + i: one for i, one in enumerate(tokens[slot])}
        behind = torch.tensor(ends, device=position.device)[:, None] < self.slots.columns[: position.shape[1]]
        return token, within, behind

    def _along(
        self, tokens: list[list[int]], begin: list[int], open_: list[list[int]], pinned: dict[int, list[int]]
    ) -> tuple[torch.Tensor, list[int]]:
        """Masks [B, n, W] along the rows' drafts, and the index of the token with which each ends.

        Where a draft cannot go on through what is committed, or ends before, the witness takes its place up to the last
        committed token: it goes into `pinned`.
        """
        count, rows = len(tokens[0]), self._held()
        offsets = {slot: row.known - begin[slot] for slot, row in rows}
        bits = self._bits({slot: tokens[slot][offsets[slot] :] for slot in offsets}, offsets, (len(tokens), count))
        ends = [count] * len(tokens)
        for slot, row in rows:
            offset = offsets[slot]
            reached, end = row.reach(tokens[slot][offset:], bits[slot, offset:].numpy())
            ends[slot] = offset + end
            given = [i for i in range(offset, count) if not open_[slot][i]]
            if given and (offset + reached in given or offset + end < given[-1]):
                length = given[-1] + 1
                pinned[slot] = tokens[slot][:offset] + _in_order(row.witness, row.known, length - offset)
        return bits, ends

    def _bits(self, drafts: Mapping[int, list[int]], offsets: Mapping[int, int], shape: Sequence[int]) -> torch.Tensor:
        """[B, n, W] int32: the masks along each slot's draft, from its offset on; all ones where nothing is known."""
        from llguidance.numpy import fill_next_token_bitmask_par as fill
        from llguidance.numpy import fill_next_token_bitmask_par_with_draft_tokens as fill_along

        rows, count = shape
        bits = torch.full((rows * count, self._words), -1, dtype=torch.int32)
        jobs = [
            (self._row(slot).matcher, slot * count + offsets[slot], draft[: count - offsets[slot] - 1])
            for slot, draft in drafts.items()
            if offsets[slot] < count
        ]
        if alone := [(matcher, index) for matcher, index, draft in jobs if not draft]:
            fill(self._executor, alone, bits.numpy())
        if along := [job for job in jobs if job[2]]:
            fill_along(self._executor, along, bits.numpy())
        for slot in drafts:
            if self._end_failed(slot, self._row(slot)):
                bits[slot * count : (slot + 1) * count] = -1
        return bits.view(rows, count, -1)

    def _end_failed(self, slot: int, row: Row) -> bool:
        """Cut a response off where llguidance can follow its grammar no further, at one of its limits."""
        if not row.ended and row.matcher.is_error():
            row.ended = True
            self.slots.state.end[slot] = row.known
        return row.ended and row.matcher.is_error()


def _in_order(tokens: Mapping[int, int], begin: int, count: int) -> list[int]:
    """The tokens at `begin` and behind, up to `count`, as far as there are."""
    found = []
    while len(found) < count and (begin + len(found)) in tokens:
        found.append(tokens[begin + len(found)])
    return found
