"""One denoising step of block diffusion, for all rows of the batch.

The forward's window holds each row's current block and, in front, the block before it where that one was just finished.
So the commit of a finished block (its keys and values as clean text) costs no forward of its own: it rides with the
first step of the next block. Rows that are in the middle of a block then write the keys and values of their previous
block a second time, with the same values.

Shape letters: B slots, S block size, W query window, K cached columns, H steps of history, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from opdlm.core.commit import without_early_ends
from opdlm.core.layout import CLEAN, PADDING, Attention, block_start
from opdlm.core.noise import uniform
from opdlm.core.propose import Proposals, chosen, counted, draw, present, propose
from opdlm.core.types import NEVER
from opdlm.sampling.rules import decide, history
from opdlm.sampling.slots import Finished, Slots
from opdlm.sampling.state import IDLE, Drift

NOISED = 1


@dataclass(frozen=True)
class Step:
    """What one denoising step did; handed to observers. All tensors are the engine's own: read them, keep none.

    Attributes:
        request: [B] int64, number of the request in each slot, -1 in an idle one.
        input_ids: [B, T] int64, the texts before the step, mask tokens where nothing is committed yet.
        start: [B] int64, first position of the current block.
        step: [B] int64, within the current block, from 0.
        logits: [B, S, V] float32 of the current block.
        committed: [B, S] bool.
    """

    request: torch.Tensor
    input_ids: torch.Tensor
    start: torch.Tensor
    step: torch.Tensor
    logits: torch.Tensor
    committed: torch.Tensor


class Denoising:
    """Propose, commit, and on to the next block where one is complete."""

    def __init__(
        self,
        slots: Slots,
        stop_ids: torch.Tensor,
        ends: Callable[[torch.Tensor], torch.Tensor],
        observer: Callable[[Step], None] | None,
    ) -> None:
        """`ends`: positions [B, S] -> bool, tokens after which a text ends, once everything before is committed."""
        self.slots, self.stop_ids, self.ends, self.observer = slots, stop_ids, ends, observer
        self.shift = 1 if slots.model.geometry.prediction == "shifted" else 0

    def step(self) -> list[Finished]:
        """One forward for all rows; hands out those that are done."""
        slots, state = self.slots, self.slots.state
        block = state.start[:, None] + slots.columns[: slots.size]
        masked = (state.commit_step.gather(1, block) == NEVER) & slots.busy()[:, None]
        logits = self._logits(block)
        controls = slots.controls()
        pick = partial(draw, chance=uniform(state.seed[:, None], block, state.step[:, None]))
        has = present(state.ids, slots.vocabulary)[:, None] if controls.repetition_penalty is not None else None
        less = controls.presence_penalty is not None
        times = counted(state.ids, slots.vocabulary, state.written())[:, None] if less else None
        constraining = slots.constraining
        if constraining is None:
            seen = propose(logits, controls, pick, has, times)
        else:
            choose = partial(chosen, controls=controls, pick=pick, has=has, written=times)
            seen, masked = constraining.proposals(logits, block, masked, choose)
        moves = self._moves(seen.log_probability)
        seen = seen if moves is None else replace(seen, drift=moves)
        committed = self._committed(seen, masked)
        if self.observer is not None:
            self.observer(Step(state.number, state.ids, state.start, state.step, logits, committed))
        slots.commit(block, committed, seen.token, seen.confidence, seen.log_probability)
        still_masked = masked & ~committed
        if constraining is not None:
            block, still_masked = self._reached(constraining.follow(block)[1])
        return self._advance(block, still_masked, self.ends(block))

    def _logits(self, block: torch.Tensor) -> torch.Tensor:
        """[B, S, V] of every slot's current block. The finished block before it goes into the cache along with it."""
        slots, state = self.slots, self.slots.state
        lead = max(slots.lead, self.shift)
        begin = (state.start - lead).clamp(min=0)
        window = begin[:, None] + slots.columns[: lead + slots.size]
        keys = slots.columns[: slots.last_start + slots.size].expand(len(block), -1)
        attention = Attention(slots.model.geometry, window, self._stream(window), keys, self._stream(keys))
        hidden = slots.forward(state.ids.gather(1, window), attention)
        predictor = (block - self.shift - begin[:, None]).clamp(min=0)  # nothing predicts token 0: it is never masked
        return slots.model.logits(hidden.gather(1, predictor[..., None].expand(-1, -1, hidden.shape[-1])))

    def _stream(self, position: torch.Tensor) -> torch.Tensor:
        """What stands at `position` [B, n]: finished text, the current block, or nothing, as in all of an idle slot."""
        start = self.slots.state.start[:, None]
        inside = (position < start + self.slots.size) & self.slots.busy()[:, None]
        return torch.where(position < start, CLEAN, torch.where(inside, NOISED, PADDING))

    def _moves(self, log_probability: torch.Tensor) -> torch.Tensor | None:
        """[B, S, H] drift of the proposals [B, S, V] over the longest history that a row's rule looks at."""
        slots = self.slots
        steps = max((history(request.decoding) for request in slots.requests), default=0)
        if not steps:
            slots.drift = None
            return None
        rows = len(log_probability)
        drift = Drift.unknown(log_probability, steps) if slots.drift is None else slots.drift.resized(rows, steps)
        slots.drift = drift.after(log_probability, slots.state.step == 0)
        return slots.drift.moves

    def _committed(self, seen: Proposals, masked: torch.Tensor) -> torch.Tensor:
        """[B, S] what each row commits, by its own rule."""
        state, requests = self.slots.state, self.slots.requests
        rules = {str(request.decoding["kind"]) for request in requests}
        if not any(request.hold_end for request in requests):
            return decide(rules, state.rule, state.numbers, seen, masked)
        ends = torch.isin(seen.token, self.stop_ids) & (state.hold_end & state.may_stop)[:, None]
        early = ends & (masked.cumsum(-1) > 1)
        unsure = replace(seen, confidence=seen.confidence.masked_fill(early, 0.0))
        return without_early_ends(decide(rules, state.rule, state.numbers, unsure, masked), early, masked)

    def _reached(self, forced: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The block and what may be known behind it where a grammar forced tokens; and which of it is still masked."""
        slots, state = self.slots, self.slots.state
        reach = state.start[:, None] + slots.columns[: slots.size + forced]
        reach = reach.clamp(max=len(slots.columns) - 1)
        return reach, (state.commit_step.gather(1, reach) == NEVER) & slots.busy()[:, None]

    def _advance(self, block: torch.Tensor, still_masked: torch.Tensor, ends: torch.Tensor) -> list[Finished]:
        """Hand out the rows that are done; complete blocks give way to the next one that has a mask.

        `block`: the row's block, [B, S]; more columns where tokens behind it are known.

        A row is done when everything up to its `end`, or up to a token where `ends` [B, S], is committed: what its last
        block still masks behind that is never filled.
        """
        slots, state, size = self.slots, self.slots.state, self.slots.size
        busy = slots.busy()
        response = (block >= state.first[:, None]) & (block < state.end[:, None]) & busy[:, None]
        stop = response & ends & (still_masked.cumsum(-1) == 0)
        stopped = stop.any(-1)
        capped = ~(still_masked & response).any(-1) & (state.start + block.shape[1] >= state.end) & busy
        done = stopped | capped
        length = torch.where(stopped, state.start + stop.int().argmax(-1) + 1, state.end)
        complete = ~still_masked[:, :size].any(-1) & ~done & busy
        later = (state.commit_step == NEVER) & (slots.columns >= state.start[:, None] + size)
        following = block_start(later.int().argmax(-1), size)
        lead = torch.where(complete, following - state.start, 0)
        start = torch.where(done, 0, state.start + lead)

        # The only question to the device in a step.
        *known, slots.last_start, slots.lead = torch.cat([done.long(), start.max()[None], lead.max()[None]]).tolist()
        rows = [slot for slot, is_done in enumerate(known) if is_done]
        finished = [slots.hand_out(slot, length, block_start(length - 1, size) + size, stopped) for slot in rows]
        state.start = start
        state.step.masked_fill_(complete, 0)
        state.number.masked_fill_(done, IDLE)
        return finished
