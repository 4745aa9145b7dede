"""Block-diffusion decoding as published tools write it: static batches, in lockstep, a forward to commit each block.

Shape letters: B rows, S block size, T columns so far, V vocabulary.

Rows are padded on the left by whole blocks, so that the current block of every row stands in the same columns. A batch
goes on, block by block, until its last row is done. A denoising step stores the keys of masked tokens in the cache,
so it runs on a copy, as in the published loops, or, which is cheaper, the cache is cropped behind it. One more forward
stores the keys of the finished block.

Where published loops differ, this one takes the faster way: it keeps the cache from block to block (some compute the
whole prefix again), runs the LM head on what is needed only, commits by whole tensors (some go row by row), and rows
that are done cost no more steps.
"""

import copy
from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from opdlm.config import Decoding, GenerationSettings
from opdlm.core.types import Geometry
from opdlm.errors import UsageError
from opdlm.models.parts import cache_argument
from opdlm.models.tokens import SpecialTokens


class PeerLoop:
    """Greedy decoding of any number of prompts, `batch_size` at a time, by the decoder's own forward.

    `crop`: remove what a step stored from the cache, instead of running it on a copy.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        geometry: Geometry,
        tokens: SpecialTokens,
        settings: GenerationSettings,
        batch_size: int,
        crop: bool = False,
    ) -> None:
        self.model, self.geometry, self.tokens = model, geometry, tokens
        self.settings, self.batch_size, self.crop = settings, batch_size, crop
        self.stops = torch.tensor(tokens.stop_token_ids)
        self.cache_argument = cache_argument(model.forward) or ""

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        """The responses, each up to and including its stop token, and the forwards of all rows.

        A forward counts for each row that is not done: steps and commits, not the prompts' pass.
        """
        responses, forwards = [], 0
        for first in range(0, len(prompts), self.batch_size):
            written, count = self._batch(prompts[first : first + self.batch_size])
            responses += written
            forwards += count
        return responses, forwards

    def _batch(self, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        size, mask = self.geometry.block_size, self.tokens.mask_token_id
        whole = torch.tensor([len(p) // size * size for p in prompts])
        width = int(whole.max())
        padding = width - whole
        begin = padding + torch.tensor([len(p) for p in prompts])  # first column of the response, and behind its last
        end = begin + self.settings.max_new_tokens
        ids = torch.full((len(prompts), width + size), mask)
        for row, prompt in enumerate(prompts):
            ids[row, : padding[row]] = self.tokens.pad_token_id
            ids[row, padding[row] : begin[row]] = torch.tensor(prompt)

        cache, last = DynamicCache(), None
        if width:
            last = self._forward(ids[:, :width], padding, cache, self._prefix_mask(width, padding), keep=1)
        done = torch.zeros(len(prompts), dtype=torch.bool)
        forwards = 0
        while True:
            block, steps = self._denoise(ids[:, -size:], padding, cache, last, done)
            ids[:, -size:] = block
            forwards += steps * int((~done).sum())
            column = torch.arange(ids.shape[1] - size, ids.shape[1])
            response = (column >= begin[:, None]) & (column < end[:, None])
            done = done | (torch.isin(block, self.stops) & response).any(-1) | (ids.shape[1] >= end)
            if done.all():
                return [self._response(*row) for row in zip(ids, begin.tolist(), end.tolist(), strict=True)], forwards
            last = self._forward(block, padding, cache, self._commit_mask(ids.shape[1], padding), keep=1)
            forwards += int((~done).sum())
            fresh = torch.where(done, self.tokens.pad_token_id, mask)[:, None].expand(-1, size)
            ids = torch.cat([ids, fresh], dim=-1)

    def _denoise(
        self,
        block: torch.Tensor,
        padding: torch.Tensor,
        cache: DynamicCache,
        last: torch.Tensor | None,
        done: torch.Tensor,
    ) -> tuple[torch.Tensor, int]:
        """[B, S] block with nothing masked, and the number of steps; `last`: [B, 1, V] logits just before it."""
        steps, visible = 0, self._block_mask(cache.get_seq_length() + block.shape[1], padding)
        masked = (block == self.tokens.mask_token_id) & ~done[:, None]
        while masked.any():
            logits = self._forward(block, padding, cache if self.crop else copy.deepcopy(cache), visible)
            if self.crop:
                cache.crop(-block.shape[1])
            if self.geometry.prediction == "shifted":
                before = logits[:, :1] if last is None else last  # nothing predicts token 0, which is never masked
                logits = torch.cat([before, logits[:, :-1]], dim=1)
            logits[..., self.tokens.mask_token_id] = float("-inf")
            confidence, token = logits.softmax(-1).max(-1)
            chosen = choose(confidence, masked, self.settings.decoding)
            block = torch.where(chosen, token, block)
            masked = masked & ~chosen
            steps += 1
        return block, steps

    def _forward(
        self, ids: torch.Tensor, padding: torch.Tensor, cache: DynamicCache, visible: torch.Tensor, keep: int = 0
    ) -> torch.Tensor:
        """[B, n, V] float32 logits of the last `keep` columns (0: all) of `ids`, which follow what `cache` holds."""
        column = cache.get_seq_length() + torch.arange(ids.shape[1])
        output = self.model(
            input_ids=ids,
            attention_mask=visible,
            position_ids=(column - padding[:, None]).clamp(min=0),
            use_cache=True,
            logits_to_keep=keep,
            **{self.cache_argument: cache},
        )
        return output.logits.float()

    def _prefix_mask(self, width: int, padding: torch.Tensor) -> torch.Tensor:
        """[B, 1, T, T] bool: finished text; padding sees itself, so that no softmax runs over nothing."""
        column = torch.arange(width)
        unit = 1 if self.geometry.context == "causal" else self.geometry.block_size
        earlier = column // unit <= (column // unit)[:, None]
        real = (column >= padding[:, None])[:, None, None]
        return (earlier & real) | torch.eye(width, dtype=torch.bool)

    def _block_mask(self, columns: int, padding: torch.Tensor) -> torch.Tensor:
        """[B, 1, S, T] bool: a block sees everything up to its end."""
        real = (torch.arange(columns) >= padding[:, None])[:, None, None]
        return real.expand(-1, -1, self.geometry.block_size, -1)

    def _commit_mask(self, columns: int, padding: torch.Tensor) -> torch.Tensor:
        """[B, 1, S, T] bool: a block as finished text."""
        visible, size = self._block_mask(columns, padding), self.geometry.block_size
        if self.geometry.context == "block":
            return visible
        return visible & pad(torch.ones(size, size, dtype=torch.bool).tril(), (columns - size, 0), value=True)

    def _response(self, ids: torch.Tensor, begin: int, end: int) -> list[int]:
        written = ids[begin:end].tolist()
        stop = next((i for i, token in enumerate(written) if token in self.tokens.stop_token_ids), len(written))
        return written[: stop + 1]


def choose(confidence: torch.Tensor, masked: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """[B, S] bool, the masked tokens that are unmasked in this step; confidence [B, S] float32."""
    size = masked.shape[1]
    if decoding.kind == "prefix":
        place = torch.arange(size).expand_as(masked)
        leftmost, unsure = (
            place.masked_fill(~which, size).amin(-1, keepdim=True)
            for which in (masked, masked & (confidence <= decoding.threshold))
        )
        return masked & ((place < unsure) | (place == leftmost))
    if decoding.kind == "sequential":
        confidence = torch.arange(size, 0.0, -1.0).expand_as(confidence)
    ranked, order = confidence.masked_fill(~masked, -1.0).topk(size)
    number = torch.arange(1, size + 1)
    match decoding.kind:
        case "static" | "sequential":
            first = (number <= decoding.tokens_per_step).expand_as(masked)
        case "dynamic":
            first = (ranked > decoding.threshold) | (number == 1)
        case "factor":
            first = ((number + 1) * (1 - ranked) < decoding.factor) | (number == 1)
        case kind:
            raise UsageError(f"the peer loop has no decoding {kind}; use static, sequential, dynamic, prefix or factor")
    return torch.zeros_like(masked).scatter(1, order, first) & masked
