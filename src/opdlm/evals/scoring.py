"""How likely a converted model finds given text: the log-likelihood of a continuation behind its context.

Three questions can be asked, and they have three answers:

    causal      log p(x) of the model's own reading from left to right, one causal pass; exact. Needs logit shift and a
                causal context. A lossless model: the AR model's own likelihood.
    sequential  log p(x) of decoding `sequential`, one token a step from the left, inside blocks of masks; exact.
    bound       the mean over all orders in which the tokens of a block can be written, blocks from left to right: a
                lower bound of log p(x) where the order is drawn at random. This is the masked-diffusion bound (ELBO) of
                LLaDA (arXiv 2502.09992) and BD3-LM (arXiv 2503.09573), in blocks.

Blocks are aligned to absolute positions, as in decoding: the context's last tokens stand unmasked in the block in which
it ends, and behind the text its last block is masked.

Shape letters: N texts, S block size, c states of a text in one pass, m states of all texts, M scored tokens, D hidden
size, V vocabulary.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from opdlm.core.layout import AUTOREGRESSIVE, CLEAN, PADDING, Attention
from opdlm.core.noise import uniform
from opdlm.core.orders import Orders, drawn_orders, every_order, left_to_right
from opdlm.errors import UsageError
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.models.cache import KVCache

Kind = Literal["causal", "sequential", "bound"]
_NOISED_TOKENS = 4096  # of one pass
_LOGITS = 2**26  # numbers at once: 256 MB


@dataclass(frozen=True)
class Text:
    """Token ids: at least one of context, then what is scored."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """Attributes:
    log_likelihood: of the continuation, in nats.
    greedy: whether it is what the model writes from left to right, one token at a time, at temperature 0.
    """

    log_likelihood: float
    greedy: bool


@dataclass(frozen=True)
class Scoring:
    """How texts are scored.

    Attributes:
        kind: see above.
        samples: for "bound": states drawn for each block. A block of n tokens with 2^n - 1 states or fewer is not
            estimated: all of them are computed (blocks of 4: 15 states).
        seed: of these draws. They depend on the context too, never on what else is scored: the continuations of one
            context are compared on the same states.
    """

    kind: Kind
    samples: int = 128
    seed: int = 0

    def orders(self, tokens: int, start: int, context: tuple[int, ...]) -> Orders:
        """The states of `tokens` tokens in the block that begins at `start`."""
        if self.kind == "sequential":
            return left_to_right(tokens)
        if 2**tokens - 1 <= self.samples:
            return every_order(tokens)
        seed = torch.tensor(self.seed ^ zlib.crc32(str(context).encode()))
        draw, column = torch.arange(self.samples)[:, None], torch.arange(1 + tokens)
        return drawn_orders(uniform(seed, torch.tensor(start), draw, column))


def reads_from_left_to_right(model: BlockDiffusionModel) -> bool:
    """Whether its clean stream predicts each token from those before it, so that one pass is the chain rule."""
    geometry = model.geometry
    return geometry.prediction == "shifted" and (geometry.context == "causal" or geometry.block_size == 1)


def check_kind(model: BlockDiffusionModel, kind: Kind) -> None:
    """UsageError for a likelihood that the model does not have."""
    if kind == "causal" and not reads_from_left_to_right(model):
        raise UsageError(
            f"likelihood 'causal' needs a model that reads from left to right, and this one has prediction "
            f"{model.geometry.prediction} and context {model.geometry.context}; choose sequential or bound"
        )
    if kind != "causal" and model.mask_token_id == NO_MASK:
        raise UsageError(f"a lossless model writes no masks, so it has no likelihood {kind!r}; choose causal")


def longest_text(model: BlockDiffusionModel, kind: Kind, limit: int) -> int:
    """Most tokens of context and continuation where the model has `limit` positions: whole blocks of them.

    Read causally, the last token is only predicted, so that it takes no position.
    """
    size = model.geometry.block_size
    return limit + 1 if kind == "causal" else limit // size * size


def log_likelihoods(
    model: BlockDiffusionModel, texts: Sequence[Text], how: Scoring, batch_size: int = 32
) -> Iterator[tuple[int, Score]]:
    """(index, score) of each text, as they are computed: `batch_size` at once, of similar length.

    A score depends on its text alone, up to rounding. What the texts of a batch have in common is computed once: the
    beginning that all share, then each context.

    Raises:
        UsageError: a likelihood that the model does not have, or a text without a context.
    """
    check_kind(model, how.kind)
    if not all(text.context for text in texts):
        raise UsageError("a text has no context; give at least a beginning-of-sequence token")
    if how.kind == "causal" and model.geometry != AUTOREGRESSIVE:
        model = model.at(AUTOREGRESSIVE)
    for batch in _batches(texts, batch_size):
        yield from zip(batch, _scores(model, [texts[index] for index in batch], how), strict=True)


def _batches(texts: Sequence[Text], batch_size: int) -> Iterator[list[int]]:
    """Indices, the longest texts first, texts of one context side by side."""
    longest: dict[tuple[int, ...], int] = {}
    for text in texts:
        longest[text.context] = max(longest.get(text.context, 0), len(text.context) + len(text.continuation))
    order = sorted(range(len(texts)), key=lambda i: (-longest[texts[i].context], texts[i].context))
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


@torch.inference_mode()
def _scores(model: BlockDiffusionModel, texts: Sequence[Text], how: Scoring) -> list[Score]:
    """The clean text is read in three passes, each behind the cache of the one before: the beginning that all texts
    share, their contexts, the texts. Then the states, behind the clean blocks before them."""
    size, shifted = model.geometry.block_size, model.geometry.prediction == "shifted"
    contexts = list(dict.fromkeys(text.context for text in texts))
    whole = [text.context + text.continuation for text in texts]
    # The context's last token is read along with the continuation, whose first token it may predict.
    known = [_whole_blocks(len(context) - 1, size) for context in contexts]
    common = min(_whole_blocks(_same(contexts), size), *known)
    of = {context: index for index, context in enumerate(contexts)}
    row_of = [of[text.context] for text in texts]

    reader = _Reader(model)
    reader.read(contexts[:1], [0], [common])
    reader.copy_rows([0] * len(contexts))
    reader.read(contexts, [common] * len(contexts), known)
    reader.copy_rows(row_of)
    begin = [known[row] for row in row_of]
    # The last block of a text is seen by none of its tokens but through states.
    end = [max(first, _whole_blocks(len(ids) - 1, size)) for first, ids in zip(begin, whole, strict=True)]
    hidden = reader.read(whole, begin, end)

    tally = _Tally(model, len(texts))
    if shifted and hidden is not None:  # the first token of a block is predicted by the clean token before it
        row, target = _block_starts(texts, size, model.device)
        tokens = torch.tensor([whole[r][t] for r, t in zip(row.tolist(), target.tolist(), strict=True)])
        predictor = target - 1 - torch.tensor(begin, device=model.device)[row]
        one = torch.ones(len(row), device=model.device)
        tally.add(hidden[row, predictor], row, tokens.to(model.device), one, one.bool())
    states = _states(texts, how, size, model.mask_token_id, shifted)
    if states is not None:
        _add_states(reader, tally, states.to(model.device), end, shifted)
    return tally.scores()


@dataclass(frozen=True)
class _States:
    """m noised blocks. Attributes: row: [m] int64, text of each. rank: [m] int64, number among those of its text.
    start: [m] int64, first position. ids, target: [m, S] int64. weight: [m, S] float32. leads: [m, S] bool."""

    row: torch.Tensor
    rank: torch.Tensor
    start: torch.Tensor
    ids: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    leads: torch.Tensor

    def to(self, device: torch.device) -> "_States":
        return _States(**{name: value.to(device) for name, value in vars(self).items()})

    def pick(self, which: torch.Tensor) -> "_States":
        return _States(**{name: value[which] for name, value in vars(self).items()})


def _states(texts: Sequence[Text], how: Scoring, size: int, mask: int, shifted: bool) -> _States | None:
    """Every state that scores something; None where the clean stream predicts all."""
    parts: list[list[torch.Tensor]] = []
    if how.kind == "causal":
        return None
    for row, text in enumerate(texts):
        if not text.continuation:
            continue
        whole, first, rank = text.context + text.continuation, len(text.context), 0
        for start in range(_whole_blocks(first, size), len(whole), size):
            block = torch.full((size,), mask)
            block[: len(whole) - start] = torch.tensor(whole[start : start + size])
            inside = slice(max(first - start, 0), min(size, len(whole) - start))
            orders = how.orders(inside.stop - inside.start, start, text.context)
            count = len(orders.masked)
            masked = torch.zeros(count, size, dtype=torch.bool)
            weight, leads = torch.zeros(count, size), torch.zeros_like(masked)
            masked[:, inside], masked[:, inside.stop :] = orders.masked, True
            weight[:, inside], leads[:, inside] = orders.weight.float(), orders.leads
            if shifted:  # its predictor is the clean token before the block, in every state the same
                weight[:, 0], leads[:, 0] = 0, False
            used = ((weight > 0) | leads).any(-1)
            number = int(used.sum())
            at = [torch.full((number,), row), rank + torch.arange(number), torch.full((number,), start)]
            ids = block.expand(count, -1)
            parts.append([*at, *(v[used] for v in (ids.masked_fill(masked, mask), ids, weight, leads))])
            rank += number
    states = _States(*(torch.cat(column) for column in zip(*parts, strict=True))) if parts else None
    return states if states is not None and len(states.row) else None


def _add_states(reader: "_Reader", tally: "_Tally", states: _States, end: Sequence[int], shifted: bool) -> None:
    """Passes over a few states of each text at a time."""
    size, rows = states.ids.shape[1], len(end)
    at_once = max(1, _NOISED_TOKENS // (rows * size))
    for first in range(0, int(states.rank.max()) + 1, at_once):
        part = states.pick((states.rank >= first) & (states.rank < first + at_once))
        hidden = reader.denoise(part, part.rank - first, min(at_once, int(states.rank.max()) + 1 - first), end)
        if shifted:
            hidden = hidden.roll(1, 1)  # predicted one to the left; nothing is scored in the first column
        used = (part.weight > 0) | part.leads
        row = part.row[:, None].expand_as(part.target)
        tally.add(hidden[used], row[used], part.target[used], part.weight[used], part.leads[used])


class _Reader:
    """Passes of a model behind what it has read: one row a text."""

    def __init__(self, model: BlockDiffusionModel) -> None:
        self.model, self.cache = model, KVCache(1, 1)

    def copy_rows(self, rows: Sequence[int]) -> None:
        """One row for each of `rows`, which may name a row several times."""
        self.cache.keep(torch.tensor(rows, device=self.model.device))

    def read(self, texts: Sequence[Sequence[int]], begin: Sequence[int], end: Sequence[int]) -> torch.Tensor | None:
        """[N, W, D] of the clean tokens from position `begin` to before `end`, W the most of a text; None for W = 0."""
        width = max(last - first for first, last in zip(begin, end, strict=True))
        if width <= 0:
            return None
        rows = zip(texts, begin, end, strict=True)
        ids = [[*text[first:last], *[0] * (width - last + first)] for text, first, last in rows]
        device, most = self.model.device, max(end)
        begins, ends = (torch.tensor(values, device=device)[:, None] for values in (begin, end))
        position = begins + torch.arange(width, device=device)
        stream = torch.where(position < ends, CLEAN, PADDING)
        key = torch.arange(most, device=device).expand(len(texts), -1)
        attention = Attention(
            self.model.geometry, position.clamp(max=most - 1), stream, key, torch.where(key < ends, CLEAN, PADDING)
        )
        self.cache.resize(len(texts), most)
        return self.model.hidden(torch.tensor(ids, device=device), attention, self.cache)

    def denoise(self, states: _States, place: torch.Tensor, places: int, end: Sequence[int]) -> torch.Tensor:
        """[m, S, D] of noised blocks behind the clean tokens before `end`; `place` [m]: below `places`, in its row."""
        rows, size, device = len(end), states.ids.shape[1], self.model.device
        ids = torch.full((rows, places, size), self.model.mask_token_id, device=device)
        position, stream = torch.zeros_like(ids), torch.full_like(ids, PADDING)
        ids[states.row, place] = states.ids
        position[states.row, place] = states.start[:, None] + torch.arange(size, device=device)
        stream[states.row, place] = place[:, None] + 1
        ids, position, stream = (value.flatten(1) for value in (ids, position, stream))
        clean = torch.arange(max(end), device=device).expand(rows, -1)
        seen = torch.where(clean < torch.tensor(end, device=device)[:, None], CLEAN, PADDING)
        attention = Attention(
            self.model.geometry,
            position,
            stream,
            torch.cat([clean, position], 1),
            torch.cat([seen, stream], 1),
            query_column=(max(end) + torch.arange(places * size, device=device)).expand(rows, -1),
        )
        self.cache.resize(rows, max(end) + places * size)
        hidden = self.model.hidden(ids, attention, self.cache)
        return hidden.view(rows, places, size, -1)[states.row, place]


class _Tally:
    """Adds up log-probabilities, in float64."""

    def __init__(self, model: BlockDiffusionModel, rows: int) -> None:
        self.model = model
        self.total = torch.zeros(rows, dtype=torch.float64)
        self.greedy = torch.ones(rows, dtype=torch.bool)

    def add(
        self, hidden: torch.Tensor, row: torch.Tensor, token: torch.Tensor, weight: torch.Tensor, leads: torch.Tensor
    ) -> None:
        """[M, D] hidden states that predict `token` [M] of the texts `row` [M]; `leads` [M]: decide `greedy`."""
        vocabulary = self.model.head_parameters()[0].shape[0]
        for part in torch.arange(len(row), device=row.device).split(max(1, _LOGITS // vocabulary)):
            logits = self.model.logits(hidden[part])
            wrong = leads[part] & (logits.argmax(-1) != token[part])
            found = logits.log_softmax(-1).gather(-1, token[part][:, None])[:, 0]
            self.total.index_add_(0, row[part].cpu(), weight[part].cpu().double() * found.cpu().double())
            self.greedy[row[part][wrong].cpu()] = False

    def scores(self) -> list[Score]:
        pairs = zip(self.total.tolist(), self.greedy.tolist(), strict=True)
        return [Score(total, greedy) for total, greedy in pairs]


def _whole_blocks(position: int, size: int) -> int:
    return position // size * size


def _same(texts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all texts begin with."""
    first, last = min(texts), max(texts)  # texts between them share what these two share
    pairs = enumerate(zip(first, last, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(last)))


def _block_starts(texts: Sequence[Text], size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """[M] texts and positions of the scored tokens with which a block begins."""
    pairs = [
        (row, position)
        for row, text in enumerate(texts)
        for position in range(len(text.context), len(text.context) + len(text.continuation))
        if position % size == 0
    ]
    made = torch.tensor(pairs, dtype=torch.int64, device=device).view(-1, 2)
    return made[:, 0], made[:, 1]
