"""The fast sampler: batched, with a KV cache, rows that advance on their own and are replaced as they finish.

Each slot of the batch is in its own block and its own round. One forward a round: its window holds the current block
and, in front, the block before it where that one was just finished. So the commit of a finished block (its keys and
values as clean text) costs no forward of its own: it rides with the first round of the next block. Rows that are in the
middle of a block then write the keys and values of their previous block a second time, with the same values.

The device is asked once a round, for all rows together, which of them are done.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from opdlm.config import GenerationSettings
from opdlm.core.propose import penalised, propose
from opdlm.core.types import Rollout
from opdlm.errors import UsageError
from opdlm.models.adapt import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.rules import commit_rule, history
from opdlm.sampling.slots import Finished, Request, Slots, stack
from opdlm.sampling.stopping import StopStrings


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
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """`tokenizer`: needed for stop strings alone."""
        self.model, self.tokens, self.settings = model, tokens, settings
        self.batch_size, self.observer = batch_size, observer
        self.rule, self.history = commit_rule(settings.decoding), history(settings.decoding)
        self.query_tokens = 0  # all tokens computed so far, prompts and idle slots included
        self.stop_ids = torch.tensor(tokens.stop_token_ids, device=model.device)
        self.bias = self._bias()
        self.stop_strings = StopStrings(tokenizer, settings.stop_strings) if settings.stop_strings else None

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None = None) -> Rollout:
        """Responses to `prompts`, in their order. Row i draws from `seeds[i]` (default: settings.seed + i)."""
        finished = dict(self.finished_rows(prompts, seeds))
        return stack([finished[i] for i in range(len(prompts))], self.tokens.pad_token_id)

    def finished_rows(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None = None) -> Iterator[Finished]:
        """(index, one-row rollout) of each prompt, as they finish."""
        for finished in self.rounds(self.continuations(prompts, seeds)):
            for index, row in finished:
                yield index, stack([row], self.tokens.pad_token_id)

    def fill(self, texts: Sequence[Sequence[int]], seeds: Sequence[int] | None = None) -> Rollout:
        """Every mask token in `texts` replaced; no stop token ends such a row.

        What stands behind a gap is seen as far as its block reaches: the geometry is the one that was trained. Rows of
        the result end with the last gap (`length`).
        """
        mask, size, seen, spans = self.tokens.mask_token_id, self.model.geometry.block_size, [], []
        for text in texts:
            gaps = [position for position, token in enumerate(text) if token == mask]
            spans.append((gaps[0], gaps[-1] + 1))
            seen.append(text[: gaps[-1] // size * size + size])
        requests = self._requests(seen, spans, False, seeds)
        finished = {index: row for rows in self.rounds(requests) for index, row in rows}
        return stack([finished[i] for i in range(len(texts))], self.tokens.pad_token_id)

    def continuations(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None = None) -> list[Request]:
        """Requests for `max_new_tokens` tokens behind each prompt, less where a stop token comes."""
        spans = [(len(prompt), len(prompt) + self.settings.max_new_tokens) for prompt in prompts]
        return self._requests(prompts, spans, True, seeds)

    @torch.inference_mode()
    def rounds(self, requests: Sequence[Request]) -> Iterator[list[Finished]]:
        """Decodes; yields after every round the rows that it finished, often none.

        The rows are inference tensors, which no training can use: `stack` makes ordinary ones of them.
        """
        queue = deque(requests)
        slots = Slots(self.model, queue, self.batch_size, self.tokens.mask_token_id, self.history)
        while queue or slots.busy:
            slots.admit(queue)
            yield self._round(slots)
        self.query_tokens += slots.query_tokens

    def _round(self, slots: Slots) -> list[Finished]:
        """One forward for all rows: propose, commit, and on to the next block where one is complete."""
        settings, block = self.settings, slots.block()
        logits = slots.logits(block)
        seen = propose(
            logits,
            self._scores(logits, slots.ids),
            slots.seed[:, None],
            block,
            slots.round[:, None],
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p,
        )
        if self.history:
            seen = replace(seen, drift=slots.drift_of(seen.log_probability))
        masked = slots.masked(block)
        committed = self.rule(seen, masked)
        if self.observer is not None:
            self.observer(Round(slots.row, slots.ids, slots.start, slots.round, logits, committed))
        slots.commit(block, committed, seen)
        return slots.advance(block, masked & ~committed, self._ends(slots, block))

    def _scores(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """[B, S, V] what tokens are chosen by: the logits with repetition penalty and bias."""
        scores = logits
        if self.settings.repetition_penalty != 1.0:
            scores = penalised(scores, ids, self.settings.repetition_penalty)
        return scores if self.bias is None else scores + self.bias

    def _ends(self, slots: Slots, block: torch.Tensor) -> torch.Tensor:
        """[B, S] bool: tokens after which a text ends, once everything before them is fixed."""
        ends = torch.isin(slots.ids.gather(1, block), self.stop_ids)
        if self.stop_strings is not None:
            ends |= self.stop_strings.completed(slots.ids, block, slots.first)
        return ends & slots.may_stop[:, None]

    def _requests(
        self,
        texts: Sequence[Sequence[int]],
        spans: Sequence[tuple[int, int]],
        may_stop: bool,
        seeds: Sequence[int] | None,
    ) -> list[Request]:
        if seeds is None:
            seeds = range(self.settings.seed, self.settings.seed + len(texts))
        rows = zip(range(len(texts)), texts, spans, seeds, strict=True)
        return [Request(index, ids, first, end, may_stop, seed) for index, ids, (first, end), seed in rows]

    def _bias(self) -> torch.Tensor | None:
        """[V] float32, or None where no token has one."""
        if not self.settings.logit_bias:
            return None
        vocabulary = self.model.head_parameters()[0].shape[0]
        if not all(0 <= token < vocabulary for token in self.settings.logit_bias):
            raise UsageError(f"logit_bias names a token that does not exist; ids go from 0 to {vocabulary - 1}")
        bias = torch.zeros(vocabulary, device=self.model.device)
        for token, value in self.settings.logit_bias.items():
            bias[token] = value
        return bias
