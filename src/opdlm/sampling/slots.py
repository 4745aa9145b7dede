"""The batch of the engine: the texts of all slots, where each is, and the cache behind them.

Shape letters: B slots, T columns, S block size, W query window, K cached columns, H rounds of history, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from opdlm.core.layout import CLEAN, PADDING, Attention, block_start
from opdlm.core.propose import Proposals, moved
from opdlm.core.types import NEVER, Rollout
from opdlm.models.adapt import BlockDiffusionModel
from opdlm.models.cache import KVCache

Finished = tuple[int, Rollout]

_NOISED = 1
_IDLE = -1
_PER_SLOT = "ids commit_round confidence row seed first end may_stop start round forwards before drift".split()


@dataclass(frozen=True)
class Request:
    """One text to be written.

    Attributes:
        index: its number among the requests.
        ids: the prompt; or a text with mask tokens, which are filled.
        first: position of the first token to write. end: position behind the last one.
        may_stop: whether a stop token or stop string ends it early.
        seed: of its random draws.
    """

    index: int
    ids: Sequence[int]
    first: int
    end: int
    may_stop: bool
    seed: int


class Slots:
    """State tensors of all slots, one row each; idle ones compute along and change nothing.

    Attributes:
        ids: [B, T] int64, mask tokens where nothing is fixed. commit_round, confidence: [B, T] as in Rollout.
        row: [B] int64, number of the request in the slot, -1 where it is idle.
        seed, first, end: [B] int64 and may_stop: [B] bool, as in Request.
        start: [B] int64, first position of the current block. round: [B] int64 within it. forwards: [B] int64.
        busy: slots that are not idle. query_tokens: tokens computed so far.
    """

    def __init__(
        self, model: BlockDiffusionModel, queue: deque[Request], batch_size: int, mask_token_id: int, history: int
    ) -> None:
        self.model, self.size, self.mask_token_id = model, model.geometry.block_size, mask_token_id
        self.shift = 1 if model.geometry.prediction == "shifted" else 0
        count = min(batch_size, len(queue))
        width = -(-max(request.end for request in queue) // self.size) * self.size + self.size
        device = model.device
        self.columns = torch.arange(width, device=device)
        self.cache = KVCache(count, width)
        self.shared = _shared_prefix(queue, self.size)
        self.shared_is_cached = self.shared == 0
        self.ids = torch.full((count, width), mask_token_id, device=device)
        self.commit_round = torch.full((count, width), NEVER, dtype=torch.int16, device=device)
        self.confidence = torch.zeros(count, width, device=device)
        self.row = torch.full((count,), _IDLE, device=device)
        self.seed, self.first, self.end, self.start, self.round, self.forwards = (
            torch.zeros(count, dtype=torch.int64, device=device) for _ in range(6)
        )
        self.may_stop = torch.zeros(count, dtype=torch.bool, device=device)
        self.before = torch.zeros(count, 0, device=device)
        self.drift = torch.full((count, self.size, history), torch.inf, device=device)
        # What the host knows of the slots; brought up to date once a round.
        self._index: list[int | None] = [None] * count  # the request in each slot
        self._last_start = 0  # of any row's current block
        self._lead = 0  # most tokens before a row's current block that are finished, but not in the cache yet
        self.busy, self.query_tokens = 0, 0

    # --- rows come ----------------------------------------------------------------------------------------------

    def admit(self, queue: deque[Request]) -> None:
        """Fill idle slots with requests; where there are none left, drop idle slots once they are a quarter of all."""
        idle = [slot for slot, index in enumerate(self._index) if index is None]
        if not queue and 4 * len(idle) >= len(self._index):
            self._keep([slot for slot, index in enumerate(self._index) if index is not None])
        new = [(slot, queue.popleft()) for slot in idle[: len(queue)]]
        if not new:
            return
        slots = torch.tensor([slot for slot, _ in new], device=self.ids.device)
        self._write(slots, [request for _, request in new])
        if not self.shared_is_cached:
            self._prefill(slots[:1], 0, self.shared)
            self.cache.spread(self.shared)
            self.shared_is_cached = True
        last_start = max(request.first // self.size * self.size for _, request in new)
        if self.busy:
            self._prefill(slots, self.shared, last_start)
        else:  # the prompts ride with the first round: no other row has to wait for them
            self._lead = last_start - self.shared
        self._last_start = max(self._last_start, last_start)
        for slot, request in new:
            self._index[slot] = request.index
        self.busy += len(new)

    def _write(self, slots: torch.Tensor, requests: Sequence[Request]) -> None:
        """The state of freshly admitted requests."""
        width, mask, device = len(self.columns), self.mask_token_id, self.ids.device
        self.ids[slots] = torch.tensor([[*r.ids, *[mask] * (width - len(r.ids))] for r in requests], device=device)
        for name in ("seed", "first", "end", "may_stop"):
            getattr(self, name)[slots] = torch.tensor([getattr(r, name) for r in requests], device=device)
        gap = (self.ids[slots] == mask) & (self.columns >= self.first[slots, None])  # what a prompt holds is given
        self.commit_round[slots] = torch.where(gap, NEVER, -1).short()
        self.confidence[slots] = 0.0
        self.row[slots] = torch.tensor([request.index for request in requests], device=device)
        self.start[slots] = block_start(self.first[slots], self.size)
        self.round[slots] = 0
        self.forwards[slots] = 0

    def _prefill(self, slots: torch.Tensor, begin: int, end: int) -> None:
        """Keys and values of the rows' finished blocks in the columns [begin, end)."""
        if end <= begin:
            return
        start = self.start[slots, None]
        key = self.columns[:end].expand(len(slots), -1)
        copy = torch.where(key < start, CLEAN, PADDING)
        attention = Attention(self.model.geometry, key[:, begin:], copy[:, begin:], key, copy)
        self.model.hidden(self.ids[slots, begin:end], attention, self.cache.at(slots))
        self.query_tokens += len(slots) * (end - begin)

    def _keep(self, slots: Sequence[int]) -> None:
        index = torch.tensor(slots, dtype=torch.int64, device=self.ids.device)
        for name in _PER_SLOT:
            setattr(self, name, getattr(self, name)[index])
        self.cache.keep(index)
        self._index = [self._index[slot] for slot in slots]

    # --- one round ----------------------------------------------------------------------------------------------

    def block(self) -> torch.Tensor:
        """[B, S] positions of every slot's current block."""
        return self.start[:, None] + self.columns[: self.size]

    def masked(self, block: torch.Tensor) -> torch.Tensor:
        """[B, S] bool: what is not fixed yet, in slots that are not idle."""
        return (self.commit_round.gather(1, block) == NEVER) & (self.row != _IDLE)[:, None]

    def logits(self, block: torch.Tensor) -> torch.Tensor:
        """[B, S, V] of every slot's current block. The finished block before it goes into the cache along with it."""
        lead = max(self._lead, self.shift)
        begin = (self.start - lead).clamp(min=0)
        window = begin[:, None] + self.columns[: lead + self.size]
        keys = self.columns[: self._last_start + self.size].expand(len(block), -1)
        attention = Attention(self.model.geometry, window, self._copy(window), keys, self._copy(keys))
        hidden = self.model.hidden(self.ids.gather(1, window), attention, self.cache)
        self.query_tokens += window.numel()
        predictor = (block - self.shift - begin[:, None]).clamp(min=0)  # nothing predicts token 0: it is never masked
        return self.model.logits(hidden.gather(1, predictor[..., None].expand(-1, -1, hidden.shape[-1])))

    def _copy(self, position: torch.Tensor) -> torch.Tensor:
        """What stands at `position` [B, n]: finished text, the current block, or nothing, as in all of an idle slot."""
        start = self.start[:, None]
        inside = (position < start + self.size) & (self.row != _IDLE)[:, None]
        return torch.where(position < start, CLEAN, torch.where(inside, _NOISED, PADDING))

    def drift_of(self, log_probability: torch.Tensor) -> torch.Tensor:
        """[B, S, H] how far the proposals [B, S, V] have moved in each of the last rounds; remembers them."""
        if self.before.shape != log_probability.shape:
            self.before = torch.zeros_like(log_probability)
        first = (self.round == 0)[:, None, None]
        newest = moved(log_probability, self.before)[..., None]
        self.drift = torch.cat([self.drift[..., 1:], newest], -1).masked_fill(first, torch.inf)
        self.before = log_probability
        return self.drift

    def commit(self, block: torch.Tensor, committed: torch.Tensor, seen: Proposals) -> None:
        """Fix the tokens where `committed` [B, S]."""
        for values, new in (
            (self.ids, seen.token),
            (self.commit_round, self.round[:, None].short().expand_as(block)),
            (self.confidence, seen.confidence),
        ):
            values.scatter_(1, block, torch.where(committed, new, values.gather(1, block)))
        self.round += 1
        self.forwards += 1

    # --- rows go ------------------------------------------------------------------------------------------------

    def advance(self, block: torch.Tensor, still_masked: torch.Tensor, ends: torch.Tensor) -> list[Finished]:
        """Hand out the rows that are done; complete blocks give way to the next one that has a mask.

        A row is done when everything up to its `end`, or up to a token where `ends` [B, S], is fixed: what its last
        block still masks behind that is never filled.
        """
        busy = self.row != _IDLE
        response = (block >= self.first[:, None]) & (block < self.end[:, None]) & busy[:, None]
        stop = response & ends & (still_masked.cumsum(-1) == 0)
        stopped = stop.any(-1)
        capped = ~(still_masked & response).any(-1) & (self.start + self.size >= self.end) & busy
        done = stopped | capped
        length = torch.where(stopped, self.start + stop.int().argmax(-1) + 1, self.end)
        complete = ~still_masked.any(-1) & ~done & busy
        later = (self.commit_round == NEVER) & (self.columns >= self.start[:, None] + self.size)
        following = block_start(later.int().argmax(-1), self.size)
        lead = torch.where(complete, following - self.start, 0)
        start = torch.where(done, 0, self.start + lead)

        # The only question to the device in a round.
        *known, self._last_start, self._lead = torch.cat([done.long(), start.max()[None], lead.max()[None]]).tolist()
        finished = self._hand_out([slot for slot, is_done in enumerate(known) if is_done], length, stopped)
        self.start = start
        self.round.masked_fill_(complete, 0)
        self.row.masked_fill_(done, _IDLE)
        return finished

    def _hand_out(self, done: Sequence[int], length: torch.Tensor, stopped: torch.Tensor) -> list[Finished]:
        """Copies of the rows that are done; their slots are idle."""
        finished = []
        for slot in done:
            index = self._index[slot]
            assert index is not None
            self._index[slot] = None
            one, end = slice(slot, slot + 1), self.start[slot] + self.size
            row = Rollout(
                input_ids=self.ids[one, :end].clone(),
                prompt_length=self.first[one].clone(),
                length=length[one].clone(),
                end=end[None],
                commit_round=self.commit_round[one, :end].clone(),
                stopped=stopped[one].clone(),
                forwards=self.forwards[one].clone(),
                confidence=self.confidence[one, :end].clone(),
            )
            finished.append((index, row))
        self.busy -= len(finished)
        return finished


def stack(rows: Sequence[Rollout], pad_token_id: int) -> Rollout:
    """One rollout of all rows, padded on the right to the longest."""
    width = max(row.input_ids.shape[1] for row in rows)

    def padded(name: str, value: float) -> torch.Tensor:
        tensors = (getattr(row, name) for row in rows)
        return torch.cat([pad(tensor, (0, width - tensor.shape[1]), value=value) for tensor in tensors])

    names = ("prompt_length", "length", "end", "stopped", "forwards")
    return Rollout(
        input_ids=padded("input_ids", pad_token_id),
        commit_round=padded("commit_round", NEVER),
        confidence=padded("confidence", 0.0),
        **{name: torch.cat([getattr(row, name) for row in rows]) for name in names},
    )


def _shared_prefix(requests: Sequence[Request], block_size: int) -> int:
    """Tokens in whole blocks with which every request begins, where there are several."""
    if len(requests) < 2:
        return 0
    texts = [list(request.ids[: request.first]) for request in requests]
    first, last = min(texts), max(texts)  # texts between them share what these two share
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return int(block_start(torch.tensor(same), block_size))
