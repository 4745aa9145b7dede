"""One forward of verified decoding, for all rows of the batch: it checks the last drafts and makes the next ones.

    queries   [the last known token, its drafts: clean] [a window behind each point at which the drafts may be refused]
    outputs   clean: the AR model's own distributions, which accept or refuse the drafts; window: the next drafts

The text is what the AR model writes token by token, whatever the drafts are: greedily its most probable token; with a
temperature, the token that a random number of the row's seed and the position picks. Drafts are picked with the same
numbers, so that they often agree. Source: docs/method.md, "Verified decoding".

Shape letters: B slots, k drafts of a window, D most drafts of a row in this forward, A anchors, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from opdlm.core.layout import CLEAN, PADDING, WindowAttention
from opdlm.core.propose import Proposals, chosen, present, propose, race
from opdlm.core.types import NEVER
from opdlm.core.windows import noise
from opdlm.errors import UsageError
from opdlm.models.drafting import DraftingModel
from opdlm.sampling.rules import TYPICAL, VERIFIED, drafts
from opdlm.sampling.slots import Finished, Slots
from opdlm.sampling.state import IDLE


class Verifying:
    """Check drafts, keep what holds and the AR model's own next token, and draft on from there."""

    def __init__(self, slots: Slots, ends: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """`ends`: positions [B, n] -> bool, tokens after which a text ends, once everything before is known."""
        assert isinstance(slots.model, DraftingModel)
        self.slots, self.ends, self.model = slots, ends, slots.model
        self.gate = slots.model.gate
        self.vocabulary = slots.vocabulary if self.gate.form == "noise" else 0
        slots.margin = (self.model.window + 1) ** 2

    def check(self, kind: str) -> None:
        """UsageError for a decoding that this model does not have."""
        if kind not in (*VERIFIED, "sequential"):
            raise UsageError(
                f"a lossless model does not decode by {kind!r}; choose verified, typical, or sequential (no drafts)"
            )

    def step(self) -> list[Finished]:
        """One forward for all rows; hands out those that are done."""
        slots, state = self.slots, self.slots.state
        most = min(self.model.window, max(drafts(request.decoding) for request in slots.requests))
        anchors = state.start[:, None] + slots.columns[: most + 1]
        clean, windows = self._hidden(anchors, most)
        seen = propose(self.model.logits(clean), **self._picking(anchors))
        guess = state.ids.gather(1, anchors)
        held = (seen.token == guess) | self._typical(seen, guess)
        held &= slots.columns[: most + 1] < state.drafted[:, None]
        accepted = held.int().cumprod(-1).sum(-1)
        token = torch.where(held, guess, seen.token)
        fresh = (slots.columns[: most + 1] <= accepted[:, None]) & (anchors < state.end[:, None])
        state.write(anchors, fresh & slots.busy()[:, None], token, seen.confidence)
        state.step += 1
        state.forwards += 1
        finished = self._advance(anchors, fresh, accepted)
        if most and slots.requests:
            self._draft(windows, accepted, most)
        return finished

    def _hidden(self, anchors: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, D + 1, H] hidden states that predict the tokens at `anchors`, and [B, A, k, H] of their windows."""
        slots, state, size = self.slots, self.slots.state, self.model.window if most else 0
        rows, lead = len(anchors), max(slots.lead, 1)
        begin = (state.start - lead).clamp(min=0)
        text = begin[:, None] + slots.columns[: lead + most]
        known = state.start + state.drafted
        within = (anchors <= known[:, None]) & slots.busy()[:, None]
        number = torch.where(within, 1 + slots.columns[: most + 1], PADDING)
        position = anchors[..., None] + slots.columns[:size]
        anchor = anchors[..., None].expand_as(position).flatten(1)
        position, stream = position.flatten(1), number[..., None].expand(rows, -1, size).flatten(1)
        ids = noise(state.seed[:, None], anchor, position - anchor, self.vocabulary)
        if (limit := self.model.max_length) is not None:
            position = position.clamp(max=limit - 1)  # drafts behind the context's end are not used

        width = slots.last_start + most
        columns = slots.columns[:width].expand(rows, -1)
        clean = self._stream(text, known)
        attention = WindowAttention(
            self.model.geometry,
            torch.cat([text, position], 1),
            torch.cat([clean, stream], 1),
            torch.cat([columns, position], 1),
            torch.cat([self._stream(columns, known), stream], 1),
            query_column=torch.cat([text, slots.columns[width : width + stream.shape[1]].expand(rows, -1)], 1),
            query_anchor=torch.cat([text, anchor], 1),
            causal_inside=self.gate.form == "noise",
            windows=stream.shape[1],
        )
        hidden = slots.forward(torch.cat([state.ids.gather(1, text), ids], 1), attention)
        predictor = (anchors - 1 - begin[:, None]).clamp(min=0)  # below 0 in idle slots
        predictor = predictor[..., None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, predictor), hidden[:, text.shape[1] :].unflatten(1, (most + 1, size))

    def _stream(self, position: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Text and drafts are clean; behind them there is nothing, as in all of an idle slot."""
        return torch.where((position < known[:, None]) & self.slots.busy()[:, None], CLEAN, PADDING)

    def _picking(self, position: torch.Tensor) -> dict[str, Any]:
        """How tokens at `position` [B, n] are picked, the AR model's and drafts alike."""
        slots, state = self.slots, self.slots.state
        controls = slots.controls()
        pick = partial(race, seed=state.seed[:, None], position=position)
        if controls.repetition_penalty is None:
            return {"controls": controls, "pick": pick}
        text = slots.columns < state.start[:, None]
        has = present(state.ids, slots.vocabulary, text)[:, None].repeat(1, position.shape[1], 1)
        for j in range(1, position.shape[1]):  # what is drafted before counts as well
            has[:, j] = has[:, j - 1].scatter(1, state.ids.gather(1, position[:, j - 1 : j]), True)
        return {"controls": controls, "pick": pick, "has": has}

    def _typical(self, seen: Proposals, drafts: torch.Tensor) -> torch.Tensor:
        """[B, n] drafts that a row accepts though the AR model would write something else."""
        state = self.slots.state
        probability = seen.log_probability.gather(-1, drafts[..., None])[..., 0].exp()
        return (probability >= state.numbers[:, :1]) & (state.rule == TYPICAL)[:, None]

    def _advance(self, anchors: torch.Tensor, fresh: torch.Tensor, accepted: torch.Tensor) -> list[Finished]:
        """Hand out the rows that are done; the others go on behind what they accepted."""
        slots, state = self.slots, self.slots.state
        busy = slots.busy()
        stop = fresh & self.ends(anchors) & busy[:, None]
        stopped = stop.any(-1)
        behind = state.start + accepted + 1
        done = (stopped | (behind >= state.end)) & busy
        length = torch.where(stopped, state.start + stop.int().argmax(-1) + 1, torch.minimum(behind, state.end))
        start = torch.where(done | ~busy, 0, behind)

        # The only question to the device in a step.
        *known, slots.last_start = torch.cat([done.long(), start.max()[None]]).tolist()
        slots.lead = 0
        rows = [slot for slot, is_done in enumerate(known) if is_done]
        finished = [slots.hand_out(slot, length, length, stopped) for slot in rows]
        state.start = start
        state.drafted.zero_()
        state.number.masked_fill_(done, IDLE)
        return finished

    def _draft(self, windows: torch.Tensor, accepted: torch.Tensor, most: int) -> None:
        """Put the next drafts behind each row's text, from the window at the point up to which its drafts held."""
        slots, state = self.slots, self.slots.state
        rows = torch.arange(len(accepted), device=accepted.device)
        position = state.start[:, None] + slots.columns[:most]
        token = chosen(self.model.logits(windows[rows, accepted, :most]), **self._picking(position))
        open_ = (state.commit_step.gather(1, position) == NEVER) & slots.busy()[:, None]
        state.ids.scatter_(1, position, torch.where(open_, token, state.ids.gather(1, position)))
        wanted = torch.minimum(state.drafts, state.end - state.start)
        state.drafted = torch.where(slots.busy(), wanted.clamp(0, most), 0)
