"""The fast sampler: batched, with a KV cache, rows that advance on their own and are replaced as they finish.

Shape letters: B slots of the batch, S block size, W query window, K cached columns, V vocabulary.

Each slot is in its own block and its own round. One forward a round: its window holds the current block and, in
front, the block before it where that one was just finished. So the commit of a finished block (its keys and values as
clean text) costs no forward of its own: it rides with the first round of the next block. Rows that are in the middle of
a block then write the keys and values of their previous block a second time, with the same values.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from opdlm.config import GenerationSettings
from opdlm.core.commit import candidates
from opdlm.core.layout import CLEAN, PADDING, Attention, block_start
from opdlm.core.types import NEVER, Rollout
from opdlm.models.adapt import BlockDiffusionModel
from opdlm.models.cache import KVCache
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.rules import commit_rule

_NOISED = 1
_IDLE = -1


@dataclass(frozen=True)
class Round:
    """What one round did; handed to observers. All tensors are the engine's own: read them, do not keep them.

    Attributes:
        row: [B] int64, number of the prompt in each slot, -1 in an idle one.
        input_ids: [B, T] int64, the texts so far, mask tokens where nothing is fixed yet.
        start: [B] int64, first position of the current block.
        round: [B] int64, round of the current block, from 0.
        logits: [B, S, V] float32 of the current block.
        committed: [B, S] bool.
    """

    row: torch.Tensor
    input_ids: torch.Tensor
    start: torch.Tensor
    round: torch.Tensor
    logits: torch.Tensor
    committed: torch.Tensor


Observer = Callable[[Round], None]


class Engine:
    """Writes the responses of any number of prompts, `batch_size` at a time.

    A response depends on its prompt, its seed and the settings alone, not on what else is in the batch.
    """

    def __init__(
        self,
        model: BlockDiffusionModel,
        tokens: SpecialTokens,
        settings: GenerationSettings,
        batch_size: int = 32,
        observer: Observer | None = None,
    ) -> None:
        self.model, self.tokens, self.settings = model, tokens, settings
        self.batch_size, self.observer = batch_size, observer
        self.rule = commit_rule(settings.decoding)
        self.query_tokens = 0  # all tokens computed so far, prompts and idle slots included
        self.stop_ids = torch.tensor(tokens.stop_token_ids, device=model.device)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None = None) -> Rollout:
        """Responses to `prompts`, in their order. Row i draws from `seeds[i]` (default: settings.seed + i)."""
        finished = dict(self.finished_rows(prompts, seeds))
        return _stack([finished[i] for i in range(len(prompts))], self.tokens.pad_token_id)

    @torch.no_grad()
    def finished_rows(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Rollout]]:
        """(index, one-row rollout) of each prompt, as they finish."""
        if seeds is None:
            seeds = range(self.settings.seed, self.settings.seed + len(prompts))
        queue = deque(zip(range(len(prompts)), prompts, seeds, strict=True))
        slots = _Slots(self, min(self.batch_size, len(prompts)), max(len(p) for p in prompts))
        while queue or slots.busy:
            slots.admit(queue)
            yield from slots.advance()


class _Slots:
    """The batch: state tensors of all slots and the cache behind them."""

    def __init__(self, engine: Engine, count: int, longest_prompt: int) -> None:
        self.engine, self.model = engine, engine.model
        size, device = self.model.geometry.block_size, self.model.device
        width = -(-(longest_prompt + engine.settings.max_new_tokens) // size) * size + size
        self.size, self.device = size, device
        self.busy = 0
        self.cache = KVCache(count, width)
        self.ids = torch.full((count, width), engine.tokens.mask_token_id, device=device)
        self.commit_round = torch.full((count, width), NEVER, dtype=torch.int16, device=device)
        self.row = torch.full((count,), _IDLE, device=device)
        self.seed, self.prompt_length, self.start, self.round, self.forwards = (
            torch.zeros(count, dtype=torch.int64, device=device) for _ in range(5)
        )
        self.uncommitted = torch.zeros(count, dtype=torch.bool, device=device)

    def admit(self, queue: deque[tuple[int, Sequence[int], int]]) -> None:
        """Fill idle slots with prompts, and their caches with the prompts' whole blocks."""
        idle = (self.row == _IDLE).nonzero()[:, 0]
        new = idle[: len(queue)]
        if len(new) == 0:
            return
        for slot in new.tolist():
            index, prompt, seed = queue.popleft()
            self.ids[slot] = self.engine.tokens.mask_token_id
            self.ids[slot, : len(prompt)] = torch.tensor(prompt, device=self.device)
            self.commit_round[slot] = NEVER
            self.commit_round[slot, : len(prompt)] = -1
            self.row[slot], self.seed[slot], self.prompt_length[slot] = index, seed, len(prompt)
        self.start[new] = block_start(self.prompt_length[new], self.size)
        self.round[new] = 0
        self.forwards[new] = 0
        self.uncommitted[new] = False
        self.busy += len(new)
        self._prefill(new)

    def _prefill(self, slots: torch.Tensor) -> None:
        width = int(self.start[slots].max())
        if width == 0:
            return
        position = torch.arange(width, device=self.device).expand(len(slots), -1)
        copy = torch.where(position < self.start[slots, None], CLEAN, PADDING)
        attention = Attention.within(self.model.geometry, position, copy)
        self.model.hidden(self.ids[slots, :width], attention, self.cache.at(slots))
        self.engine.query_tokens += position.numel()

    def advance(self) -> Iterator[tuple[int, Rollout]]:
        """One round of every slot; yields the rows that it finished."""
        settings = self.engine.settings
        block = self.start[:, None] + torch.arange(self.size, device=self.device)
        logits = self._block_logits(block)
        token, confidence = candidates(
            logits,
            self.seed[:, None],
            block,
            self.round[:, None],
            settings.temperature,
            settings.top_k,
            settings.top_p,
        )
        masked = (self.commit_round.gather(1, block) == NEVER) & (self.row != _IDLE)[:, None]
        committed = masked & self.engine.rule(confidence, masked)
        if self.engine.observer is not None:
            self.engine.observer(Round(self.row, self.ids, self.start, self.round, logits, committed))
        self.ids.scatter_(1, block, torch.where(committed, token, self.ids.gather(1, block)))
        fixed = torch.where(committed, self.round[:, None].short(), self.commit_round.gather(1, block))
        self.commit_round.scatter_(1, block, fixed)
        self.round += 1
        self.forwards += 1
        yield from self._next_block(block, masked & ~committed)

    def _block_logits(self, block: torch.Tensor) -> torch.Tensor:
        """[B, S, V] logits of every slot's current block; commits the block before it where that is due."""
        geometry = self.model.geometry
        shift = 1 if geometry.prediction == "shifted" else 0
        lead = self.size if bool(self.uncommitted.any()) else shift
        begin = (self.start - lead).clamp(min=0)
        window = begin[:, None] + torch.arange(lead + self.size, device=self.device)
        keys = torch.arange(int(self.start.max()) + self.size, device=self.device).expand(len(block), -1)
        attention = Attention(geometry, window, self._copy(window), keys, self._copy(keys))
        ids = self.ids.gather(1, window)
        self.engine.query_tokens += ids.numel()
        hidden = self.model.hidden(ids, attention, self.cache)
        self.uncommitted[:] = False
        predictor = (block - shift - begin[:, None]).clamp(min=0)  # nothing predicts token 0, which is never masked
        return self.model.logits(hidden.gather(1, predictor[..., None].expand(-1, -1, hidden.shape[-1])))

    def _copy(self, position: torch.Tensor) -> torch.Tensor:
        """What stands at `position` [B, n]: finished text, the current block, or nothing."""
        start = self.start[:, None]
        inside = torch.where(position < start + self.size, _NOISED, PADDING)
        return torch.where(position < start, CLEAN, inside)

    def _next_block(self, block: torch.Tensor, still_masked: torch.Tensor) -> Iterator[tuple[int, Rollout]]:
        """Rows that are done are handed out and their slots become idle; complete blocks give way to the next.

        A row is done when everything up to a stop token, or up to the length cap, is fixed: what its last block still
        masks behind that is never filled.
        """
        busy = (self.row != _IDLE)[:, None]
        cap = (self.prompt_length + self.engine.settings.max_new_tokens)[:, None]
        response = (block >= self.prompt_length[:, None]) & (block < cap) & busy
        filled_so_far = still_masked.cumsum(-1) == 0
        stop = response & filled_so_far & torch.isin(self.ids.gather(1, block), self.engine.stop_ids)
        stopped = stop.any(-1)
        capped = ~(still_masked & response).any(-1) & (self.start + self.size >= cap[:, 0]) & busy[:, 0]
        length = torch.where(stopped, self.start + stop.int().argmax(-1) + 1, cap[:, 0])
        done = stopped | capped
        for slot in done.nonzero()[:, 0].tolist():
            yield int(self.row[slot]), self._rollout(slot, length, stopped)
        complete = ~still_masked.any(-1) & ~done & busy[:, 0]
        self.busy -= int(done.sum())
        self.row.masked_fill_(done, _IDLE)
        self.start = torch.where(done, 0, torch.where(complete, self.start + self.size, self.start))
        self.round.masked_fill_(complete, 0)
        self.uncommitted |= complete

    def _rollout(self, slot: int, length: torch.Tensor, stopped: torch.Tensor) -> Rollout:
        """A copy of one slot's row."""
        one, end = slice(slot, slot + 1), int(self.start[slot]) + self.size
        return Rollout(
            input_ids=self.ids[one, :end].clone(),
            prompt_length=self.prompt_length[one].clone(),
            length=length[one].clone(),
            end=(self.start[one] + self.size),
            commit_round=self.commit_round[one, :end].clone(),
            stopped=stopped[one].clone(),
            forwards=self.forwards[one].clone(),
        )


def _stack(rows: Sequence[Rollout], pad_token_id: int) -> Rollout:
    """One rollout of all rows, padded on the right to the longest."""
    width = max(r.input_ids.shape[1] for r in rows)

    def padded(name: str, value: int) -> torch.Tensor:
        tensors = (getattr(r, name) for r in rows)
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=value) for t in tensors])

    names = ("prompt_length", "length", "end", "stopped", "forwards")
    joined = {name: torch.cat([getattr(r, name) for r in rows]) for name in names}
    return Rollout(input_ids=padded("input_ids", pad_token_id), commit_round=padded("commit_round", NEVER), **joined)
