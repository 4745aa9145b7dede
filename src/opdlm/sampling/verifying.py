"""One forward of verified decoding, for all rows of the batch: it checks the last drafts and makes the next ones.

    queries   [the last known token, its drafts: clean] [a window behind each point at which the drafts may be refused]
    outputs   clean: the AR model's own distributions, which accept or refuse the drafts; window: the next drafts

The text is what the AR model writes token by token, whatever the drafts are: greedily its most probable token; with a
temperature, the token that a random number of the row's seed and the position picks. Drafts are picked with the same
numbers, so that they often agree. Source: docs/method.md, "Verified decoding".

Shape letters: B slots, D most drafts of a row in this forward, A anchors, w tokens of a window, H hidden size.
"""

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch

from opdlm.core.layout import CLEAN, PADDING, Attention
from opdlm.core.propose import Proposals, chosen, counted, propose, race
from opdlm.core.types import NEVER
from opdlm.sampling.drafters import Drafter
from opdlm.sampling.rules import TYPICAL
from opdlm.sampling.slots import Finished, Slots
from opdlm.sampling.state import IDLE

Drafting = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(number of a window [B], places in it [B, n]) -> [B, n, V] logits."""
_FEW, _FEW_ON = 128, {"cpu": 16}
"""Most tokens for which one pass of the LM head takes less time than two: more arithmetic, but its weights once."""


class Verifying:
    """Check drafts, keep what holds and the AR model's own next token, and draft on from there."""

    def __init__(self, slots: Slots, ends: Callable[[torch.Tensor], torch.Tensor], drafter: Drafter) -> None:
        """`ends`: positions [B, n] -> bool, tokens after which a text ends, once everything before is known."""
        self.slots, self.ends, self.drafter = slots, ends, drafter
        slots.margin, slots.verified = drafter.margin, True
        self._pending = 0  # most drafts that a row has

    def step(self) -> list[Finished]:
        """One forward for all rows; hands out those that are done."""
        slots, state, began = self.slots, self.slots.state, perf_counter()
        shape, before, prompts = self.drafter.shape(slots.requests), slots.query_tokens, slots.lead > 1
        place = slots.columns[: self._pending + 1]
        checked = state.start[:, None] + place
        behind = checked if shape.every else (state.start + state.drafted)[:, None]
        logits, drafting = self._logits(*self._hidden(checked, behind, shape.size))
        constraining = slots.constraining
        if constraining is not None:
            logits = constraining.checked(logits)
        seen = propose(logits, **self._picking(checked))
        guess = state.ids.gather(1, checked)
        held = (seen.token == guess) | self._typical(seen, guess)
        held &= place < state.drafted[:, None]
        accepted = held.int().cumprod(-1).sum(-1)
        token = torch.where(held, guess, seen.token)
        fresh = (place <= accepted[:, None]) & (checked < state.end[:, None])
        confidence = seen.log_probability.gather(-1, token[..., None])[..., 0].exp()
        slots.commit(checked, fresh & slots.busy()[:, None], token, confidence, seen.log_probability)
        forced, most = (torch.zeros_like(accepted), 0) if constraining is None else constraining.follow(checked)
        # A window behind the last draft is of use where all drafts held.
        useful = shape.every | (accepted == state.drafted)
        index = accepted if shape.every else torch.zeros_like(accepted)
        finished, counts = self._advance(accepted, useful * shape.size, forced, most)
        tokens = None if prompts else slots.query_tokens - before
        self.drafter.saw(tokens, perf_counter() - began, *counts)
        if self._pending:
            self._draft(partial(drafting, index), shape.size, forced)
        return finished

    def _hidden(self, checked: torch.Tensor, behind: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, D + 1, H] hidden states that predict the tokens at `checked`; [B, A, n, H] those that draft `size` tokens
        behind each of `behind` [B, A]."""
        slots, state = self.slots, self.slots.state
        (rows, count), lead, most = behind.shape, max(slots.lead, 1), self._pending
        begin = (state.start - lead).clamp(min=0)
        text = begin[:, None] + slots.columns[: lead + most]
        known = state.start + state.drafted
        within = (behind <= known[:, None]) & slots.busy()[:, None]
        ids, position = self.drafter.windows(behind, size)
        number = torch.where(within, 1 + slots.columns[:count], PADDING)
        stream = number[..., None].expand_as(position).flatten(1)
        if (limit := slots.model.max_length) is not None:
            position = position.clamp(max=limit - 1)  # drafts behind the context's end are not used
        position = position.flatten(1)

        width = slots.last_start + most
        columns = slots.columns[:width].expand(rows, -1)
        attention = Attention(
            slots.model.geometry,
            torch.cat([text, position], 1),
            torch.cat([self._stream(text, known), stream], 1),
            torch.cat([columns, position], 1),
            torch.cat([self._stream(columns, known), stream], 1),
            query_column=torch.cat([text, slots.columns[width : width + stream.shape[1]].expand(rows, -1)], 1),
        )
        attention = self.drafter.attention(attention, behind, size)
        hidden = slots.forward(torch.cat([state.ids.gather(1, text), ids.flatten(1)], 1), attention)
        predictor = (checked - 1 - begin[:, None]).clamp(min=0)  # below 0 in idle slots
        predictor = predictor[..., None].expand(-1, -1, hidden.shape[-1])
        windows = hidden[:, text.shape[1] :].unflatten(1, (count, -1)).flatten(0, 1)
        following = (behind[..., None] + 1 + slots.columns[:size]).flatten(0, 1)
        drafting = self.drafter.predicting(windows, following).unflatten(0, (rows, count))
        return hidden.gather(1, predictor), drafting

    def _logits(self, clean: torch.Tensor, windows: torch.Tensor) -> tuple[torch.Tensor, Drafting]:
        """[B, D + 1, V] of hidden states `clean` [B, D + 1, H]; and what gives those of a window of each row.

        Few tokens go through the LM head together: its weights are read once, and that is what takes the time.
        """
        model, row = self.slots.model, torch.arange(len(clean), device=clean.device)[:, None]
        checks, (count, size) = clean.shape[1], windows.shape[1:3]
        if len(clean) * (checks + count * size) > _FEW_ON.get(model.device.type, _FEW):
            return model.logits(clean), lambda index, place: model.logits(windows[row, index[:, None], place])
        logits = model.logits(torch.cat([clean, windows.flatten(1, 2)], 1))
        drafts = logits[:, checks:].unflatten(1, (count, size))
        return logits[:, :checks], lambda index, place: drafts[row, index[:, None], place]

    def _stream(self, position: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Text and drafts are clean; behind them there is nothing, as in all of an idle slot."""
        return torch.where((position < known[:, None]) & self.slots.busy()[:, None], CLEAN, PADDING)

    def _picking(self, position: torch.Tensor) -> dict[str, Any]:
        """How tokens at `position` [B, n] are picked, the AR model's and drafts alike."""
        slots, state = self.slots, self.slots.state
        controls = slots.controls()
        pick = partial(race, seed=state.seed[:, None], position=position)
        picking: dict[str, Any] = {"controls": controls, "pick": pick}
        if controls.repetition_penalty is not None:
            picking["has"] = self._counted(slots.columns < state.start[:, None], position) > 0
        if controls.presence_penalty is not None:
            picking["written"] = self._counted(state.written(), position)
        return picking

    def _counted(self, where: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """[B, n, V]: how often each token stands `where` [B, T], and as a draft before each `position` [B, n]."""
        ids, count = self.slots.state.ids, position.shape[1]
        counts = counted(ids, self.slots.vocabulary, where)[:, None].repeat(1, count, 1)
        drafted = torch.ones_like(counts[:, 0, :1])
        for j in range(1, count):
            counts[:, j] = counts[:, j - 1].scatter_add(1, ids.gather(1, position[:, j - 1 : j]), drafted)
        return counts

    def _typical(self, seen: Proposals, drafts: torch.Tensor) -> torch.Tensor:
        """[B, n] drafts that a row accepts though the AR model would write something else."""
        state = self.slots.state
        probability = seen.log_probability.gather(-1, drafts[..., None])[..., 0].exp()
        return (probability >= state.numbers[:, :1]) & (state.rule == TYPICAL)[:, None]

    def _advance(
        self, accepted: torch.Tensor, offered: torch.Tensor, forced: torch.Tensor, most: int
    ) -> tuple[list[Finished], tuple[list[int], list[int]]]:
        """Hand out the rows that are done; the others go on behind what they `accepted` [B], the token that follows it
        and those that a grammar `forced` [B] there, at `most` so many, with what is left of `offered` [B] drafts.

        Returns the rows, and for each slot its drafts and how many of them held.
        """
        slots, state = self.slots, self.slots.state
        busy = slots.busy()
        drafting = state.start + accepted + 1
        behind = drafting + forced
        written = state.start[:, None] + slots.columns[: self._pending + 1 + most]
        written = written.clamp(max=len(slots.columns) - 1)
        fresh = (written < behind[:, None]) & (written < state.end[:, None])
        stop = fresh & self.ends(written) & busy[:, None]
        stopped = stop.any(-1)
        done = (stopped | (behind >= state.end)) & busy
        length = torch.where(stopped, state.start + stop.int().argmax(-1) + 1, torch.minimum(behind, state.end))
        start = torch.where(done | ~busy, 0, behind)

        room = torch.minimum(self.drafter.room(drafting), offered) - forced
        drafted = torch.minimum(torch.minimum(state.drafts, state.end - start), room.clamp(min=0))
        drafted = torch.where(done | ~busy, 0, drafted)

        # The only question to the device in a step.
        told = torch.cat([done.long(), state.drafted, accepted, start.max()[None], drafted.max()[None]]).tolist()
        count, slots.last_start, slots.lead, self._pending = len(done), told[-2], most + 1, told[-1]
        finished = [slots.hand_out(slot, length, length, stopped) for slot in range(count) if told[slot]]
        state.start = start
        state.drafted = drafted
        state.number.masked_fill_(done, IDLE)
        return finished, (told[count : 2 * count], told[2 * count : 3 * count])

    def _draft(self, logits: Callable[[torch.Tensor], torch.Tensor], size: int, forced: torch.Tensor) -> None:
        """Put the next drafts behind each row's text, which ends with `forced` [B]; `logits`: of drafts [B, n]."""
        slots, state = self.slots, self.slots.state
        place = slots.columns[:size]
        position = state.start[:, None] + place
        choose = partial(chosen, **self._picking(position))
        seen = logits((place + forced[:, None]).clamp(max=size - 1))
        if (constraining := slots.constraining) is None:
            token = choose(seen)
        else:
            token, *_ = constraining.draft(seen, position, torch.ones_like(position, dtype=torch.bool), choose)
        open_ = (state.commit_step.gather(1, position) == NEVER) & slots.busy()[:, None]
        state.ids.scatter_(1, position, torch.where(open_, token, state.ids.gather(1, position)))
