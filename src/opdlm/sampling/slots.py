"""The batch of the engine: rows come, advance and go, and the cache behind them.

Shape letters: B slots, T columns, S block size, W query window, K cached columns, H steps of history, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn.functional import pad

from opdlm.core.layout import CLEAN, PADDING, Attention
from opdlm.core.propose import Controls
from opdlm.core.types import NEVER, Rollout
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.cache import KVCache
from opdlm.sampling.request import Request
from opdlm.sampling.state import IDLE, Drift, Numbered, SlotState
from opdlm.sampling.stopping import StopStrings

Finished = tuple[int, Rollout]
"""A request's number, and its one row."""


@dataclass(frozen=True)
class Draft:
    """A watched text as it is now: when it is admitted, and after each step that does not finish it. Host tensors.

    Attributes:
        request: its number.
        input_ids: [n] int64, from the prompt's first token to the end of the current block, mask tokens where nothing
            is committed. Where drafts are verified: to the last draft.
        known: how many tokens, from the first, stand in finished blocks. Where drafts are verified: those that are; the
            drafts behind them are checked by the next forward.
        sure: how many tokens, from the first, are committed without a gap.
        confidence, top_ids, top_log_probability: [n], [n, A], [n, A], as in Rollout.
        forwards: that it took so far.
    """

    request: int
    input_ids: torch.Tensor
    known: int
    sure: int
    confidence: torch.Tensor
    forwards: int
    top_ids: torch.Tensor | None = None
    top_log_probability: torch.Tensor | None = None


@dataclass
class Prefix:
    """Whole blocks with which all requests of a burst begin: computed once.

    Attributes:
        ids: the tokens; none where nothing is shared.
        slots: those whose cache holds them; None before they were computed.
    """

    ids: list[int] = field(default_factory=list)
    slots: set[int] | None = None

    def begins(self, request: Request) -> bool:
        return len(self.ids) <= request.first and list(request.ids[: len(self.ids)]) == self.ids


class Slots:
    """The rows that are being written, at most `capacity` at once.

    Attributes:
        state: of all slots. held: the number and the request in each, None in an idle one; known to the host.
        query_tokens: tokens computed so far.
    """

    def __init__(
        self,
        model: BlockDiffusionModel,
        capacity: int,
        mask_token_id: int,
        stop_strings: Callable[[tuple[str, ...]], StopStrings],
        block_size: int | None = None,
    ) -> None:
        """`stop_strings`: what finds them. `block_size`: S, tokens in which rows advance; None: the model's."""
        self.model, self.capacity, self.mask_token_id = model, capacity, mask_token_id
        self.stop_strings = stop_strings
        self.size = block_size or model.geometry.block_size
        self.vocabulary = model.head_parameters()[0].shape[0]
        self.query_tokens = 0
        self.state = SlotState.of([], self.size, self.size, mask_token_id, model.device)
        self.held: list[Numbered | None] = []
        self.columns = torch.arange(self.size, device=model.device)
        self.cache = KVCache(0, self.size)
        self.prefix: Prefix | None = None
        self.bias: torch.Tensor | None = None  # [B, V]
        self.drift: Drift | None = None
        self._constraining: Any = None
        # What the host knows of the slots; brought up to date once a step.
        self.last_start = 0  # of any row's current block
        self.lead = 0  # most tokens before a row's current block that are finished, but not in the cache yet
        self.margin = 0  # columns that a step needs behind the last block
        self.verified = False  # what stands behind the known text are drafts

    @property
    def requests(self) -> list[Request]:
        """Those that are being written."""
        return [one[1] for one in self.held if one is not None]

    @property
    def constraining(self) -> Any:
        """What keeps rows to their grammars (`sampling/constraining.py`); None where no row has one."""
        return self._constraining if any(request.grammar is not None for request in self.requests) else None

    def slot_of(self, number: int) -> int | None:
        """Where a request is being written, or None."""
        return next((slot for slot, one in enumerate(self.held) if one is not None and one[0] == number), None)

    # --- rows come ----------------------------------------------------------------------------------------------

    def admit(self, waiting: deque[Numbered]) -> list[int]:
        """Take requests from `waiting` into slots; returns these slots.

        Where nobody waits, idle slots go once they are a quarter of all.
        """
        idle = self._idle()
        if not waiting and 4 * len(idle) >= len(self.held):
            self._keep([slot for slot, one in enumerate(self.held) if one is not None])
        if not waiting:
            return []
        self._find_prefix([request for _, request in waiting])
        self._add_slots(min(self.capacity - len(self.held), len(waiting) - len(idle)))
        slots = self._idle()[: len(waiting)]
        if slots:
            self._begin_or_give_back(slots, [waiting.popleft() for _ in slots], waiting)
        return slots

    def _begin_or_give_back(self, slots: list[int], numbered: list[Numbered], waiting: deque[Numbered]) -> None:
        """If a request cannot begin (memory is short), all of them wait again and their slots are idle."""
        begun = False
        try:
            self._begin(slots, numbered)
            begun = True
        finally:
            if not begun:
                waiting.extendleft(reversed(numbered))
                for slot in slots:
                    self.drop(slot)
                self.prefix = Prefix()  # whether the cache holds the last one is not known

    def _idle(self) -> list[int]:
        return [slot for slot, one in enumerate(self.held) if one is None]

    def _begin(self, slots: list[int], numbered: list[Numbered]) -> None:
        """Requests into idle slots; their prompts into the cache, where other rows are not to wait for them."""
        requests, others = [request for _, request in numbered], bool(self.requests)
        width = max(-(-request.end // self.size) * self.size + self.size + self.margin for request in requests)
        self._widen(width, max(request.alternatives for request in requests))
        device, alternatives = self.model.device, self.state.top_ids.shape[-1]
        index = torch.tensor(slots, device=device)
        new = SlotState.of(numbered, len(self.columns), self.size, self.mask_token_id, device, alternatives)
        self.state.put(index, new)
        for slot, one in zip(slots, numbered, strict=True):
            self.held[slot] = one
        self._set_bias(slots, requests)
        known = self._share(slots, requests)
        last_start = max(request.first // self.size * self.size for request in requests)
        if others:
            self._prefill(index, known, last_start)
        else:  # the prompts ride with the first step: no other row has to wait for them
            self.lead = last_start - known
        self.last_start = max(self.last_start, last_start)
        self._constrain(slots, requests)

    def _find_prefix(self, waiting: Sequence[Request]) -> None:
        """What all of a burst have in common: looked for when nobody is being written and something new has come."""
        if self.prefix is None and not self.requests:
            self.prefix = Prefix(_shared_prefix(waiting, self.size))

    def _share(self, slots: Sequence[int], requests: Sequence[Request]) -> int:
        """Columns at the front that the cache holds already for all of these slots."""
        prefix = self.prefix
        if prefix is None or not prefix.ids:
            return 0
        length = len(prefix.ids)
        if prefix.slots is None:  # the first of the burst: one row computes it, all get it
            self._prefill(torch.tensor(slots[:1], device=self.model.device), 0, length)
            self.cache.spread(slots[0], length)
            prefix.slots = set(range(len(self.held)))
        for slot, request in zip(slots, requests, strict=True):
            if not prefix.begins(request):
                prefix.slots.discard(slot)
        return length if prefix.slots.issuperset(slots) else 0

    def _prefill(self, slots: torch.Tensor, begin: int, end: int) -> None:
        """Keys and values of the rows' finished blocks in the columns [begin, end)."""
        if end <= begin:
            return
        start = self.state.start[slots, None]
        key = self.columns[:end].expand(len(slots), -1)
        stream = torch.where(key < start, CLEAN, PADDING)
        attention = Attention(self.model.geometry, key[:, begin:], stream[:, begin:], key, stream)
        self.model.hidden(self.state.ids[slots, begin:end], attention, self.cache.at(slots))
        self.query_tokens += len(slots) * (end - begin)

    def _set_bias(self, slots: Sequence[int], requests: Sequence[Request]) -> None:
        if self.bias is None and any(request.logit_bias for request in requests):
            self.bias = torch.zeros(len(self.held), self.vocabulary, device=self.model.device)
        if self.bias is None:
            return
        for slot, request in zip(slots, requests, strict=True):
            self.bias[slot] = 0.0
            for token, value in request.logit_bias.items():
                self.bias[slot, int(token)] = value

    def _constrain(self, slots: Sequence[int], requests: Sequence[Request]) -> None:
        grammars = [request.grammar for request in requests if request.grammar is not None]
        if grammars:
            self._constraining = self._constraining or grammars[0].over(self)
            self._constraining.open(slots)

    def _add_slots(self, count: int) -> None:
        if count <= 0:
            return
        # Whatever takes memory first: if it runs out, nothing has changed.
        state, bias = self.state.with_idle(count), None if self.bias is None else pad(self.bias, (0, 0, 0, count))
        self.cache.resize(len(self.held) + count, self.cache.length)
        self.state, self.bias = state, bias
        self.held += [None] * count

    def _widen(self, width: int, alternatives: int) -> None:
        if width <= len(self.columns) and alternatives <= self.state.top_ids.shape[-1]:
            return
        width = max(width, len(self.columns))
        state = self.state.widened(width, self.mask_token_id, alternatives)
        columns = torch.arange(width, device=self.columns.device)
        self.cache.resize(self.cache.rows, width)
        self.state, self.columns = state, columns

    def _keep(self, slots: Sequence[int]) -> None:
        index = torch.tensor(slots, dtype=torch.int64, device=self.model.device)
        state = self.state.rows(index)
        self.cache.keep(index)
        self.state = state
        self.bias = None if self.bias is None else self.bias[index]
        self.drift = None if self.drift is None else self.drift.rows(index)
        self.held = [self.held[slot] for slot in slots]
        if self.prefix is not None and self.prefix.slots is not None:
            self.prefix.slots = {new for new, old in enumerate(slots) if old in self.prefix.slots}

    # --- what a step needs -------------------------------------------------------------------------------------

    def busy(self) -> torch.Tensor:
        """[B] bool: slots that are not idle."""
        return self.state.number != IDLE

    def forward(self, input_ids: torch.Tensor, attention: Attention) -> torch.Tensor:
        """[B, W, D] hidden states of one pass over all slots; keys and values go into the cache."""
        self.query_tokens += input_ids.numel()
        return self.model.hidden(input_ids, attention, self.cache)

    def controls(self) -> Controls:
        """How tokens are drawn; what no row uses is left out."""
        busy, state = self.requests, self.state
        draws = [request for request in busy if request.temperature > 0]
        penalty = any(request.repetition_penalty != 1 for request in busy)
        written = any(request.presence_penalty or request.frequency_penalty for request in busy)
        top_k = max((request.top_k for request in draws), default=0)
        return Controls(
            temperature=state.temperature if draws else None,
            top_k=state.top_k if top_k else None,
            top_k_limit=top_k,
            top_p=state.top_p if any(request.top_p < 1 for request in draws) else None,
            min_p=state.min_p if any(request.min_p > 0 for request in draws) else None,
            repetition_penalty=state.repetition_penalty if penalty else None,
            presence_penalty=state.presence_penalty if written else None,
            frequency_penalty=state.frequency_penalty if written else None,
            bias=self.bias if any(request.logit_bias for request in busy) else None,
        )

    def commit(
        self,
        position: torch.Tensor,
        where: torch.Tensor,
        token: torch.Tensor,
        confidence: torch.Tensor,
        log_probability: torch.Tensor,
    ) -> None:
        """Write tokens [B, n] at positions [B, n] `where` [B, n] says so; `log_probability` [B, n, V]: the model's."""
        state = self.state
        state.write(position, where, token, confidence)
        if count := max((request.alternatives for request in self.requests), default=0):
            state.write_alternatives(position, where, log_probability, min(count, self.vocabulary))
        state.step += 1
        state.forwards += 1

    # --- rows go ------------------------------------------------------------------------------------------------

    def hand_out(self, slot: int, length: torch.Tensor, ends: torch.Tensor, stopped: torch.Tensor) -> Finished:
        """A copy of a row that is done, up to `ends` [B], the end of its last block; its slot is idle."""
        held = self.held[slot]
        assert held is not None
        self.held[slot] = None
        state, one, end = self.state, slice(slot, slot + 1), ends[slot]
        row = Rollout(
            input_ids=state.ids[one, :end].clone(),
            prompt_length=state.first[one].clone(),
            length=length[one].clone(),
            end=end[None],
            commit_step=state.commit_step[one, :end].clone(),
            stopped=stopped[one].clone(),
            forwards=state.forwards[one].clone(),
            confidence=state.confidence[one, :end].clone(),
        )
        if most := held[1].alternatives:
            top_ids, top_logs = state.top_ids[one, :end, :most], state.top_log_probability[one, :end, :most]
            row = replace(row, top_ids=top_ids.clone(), top_log_probability=top_logs.clone())
        return held[0], row

    def drop(self, slot: int) -> None:
        """Forget the row in a slot, which becomes idle."""
        self.held[slot] = None
        self.state.number[slot] = IDLE
        self.state.start[slot] = 0

    def drafts(self, slots: Sequence[int]) -> list[Draft]:
        """The texts in these slots as they are now; all are asked of the device together."""
        if not slots:
            return []
        state, index = self.state, torch.tensor(slots, device=self.model.device)
        ahead = state.drafted if self.verified else torch.full_like(state.drafted, self.size)
        behind = torch.minimum(state.start + ahead, state.end)
        open_ = (state.commit_step == NEVER) & (self.columns < state.end[:, None])
        sure = torch.where(open_.any(-1), open_.int().argmax(-1), state.end)
        rows = torch.stack([behind, state.start, sure, state.forwards], 1)[index].tolist()
        width = max(row[0] for row in rows)
        ids, confidence = state.ids[index, :width].cpu(), state.confidence[index, :width].cpu()
        drafts = []
        for slot, text, chance, (end, known, sure, forwards) in zip(slots, ids, confidence, rows, strict=True):
            held = self.held[slot]
            assert held is not None
            draft = Draft(held[0], text[:end], known, sure, chance[:end], forwards)
            drafts.append(replace(draft, **self._alternatives(slot, end)))
        return drafts

    def _alternatives(self, slot: int, end: int) -> dict[str, torch.Tensor]:
        """[end, A] those of the row in a slot, on the host; nothing where it wants none."""
        held = self.held[slot]
        if held is None or not (most := held[1].alternatives):
            return {}
        names = ("top_ids", "top_log_probability")
        return {name: getattr(self.state, name)[slot, :end, :most].cpu().clone() for name in names}


def _shared_prefix(requests: Sequence[Request], block_size: int) -> list[int]:
    """The whole blocks with which every request begins, where there are several."""
    if len(requests) < 2:
        return []
    texts = [list(request.ids[: request.first]) for request in requests]
    first, last = min(texts), max(texts)  # texts between them share what these two share
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return first[: same // block_size * block_size]
