"""How well an autoregressive model explains given text: bits per byte and per token, and what it would have written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from opdlm.errors import UsageError

_IGNORE = -100


@dataclass(frozen=True)
class Reading:
    """What an AR model says of one text.

    Attributes:
        nats: of the whole response. tokens: that were scored.
        agreed: those that are the model's own first choice behind the text before them.
    """

    nats: float
    tokens: int
    agreed: int


@torch.no_grad()
def read(model: PreTrainedModel, sequences: Sequence[tuple[list[int], int]], *, batch_size: int = 8) -> list[Reading]:
    """Has the model read the responses, one reading for each of `sequences`; arguments as in `bits_per_byte`."""
    if any(not 1 <= prompt_length <= len(ids) for ids, prompt_length in sequences):
        raise UsageError("a sequence has no prompt token, or fewer tokens than its prompt; begin it with one at least")
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index][0]))  # rows of one length: no padding
    found: dict[int, Reading] = {}
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        found |= zip(chosen, _read(model, [sequences[index] for index in chosen]), strict=True)
    return [found[index] for index in range(len(sequences))]


def bits_per_byte(
    model: PreTrainedModel,
    sequences: Sequence[tuple[list[int], int]],
    texts: Sequence[str],
    *,
    batch_size: int = 8,
) -> float:
    """Bits that `model` needs for each UTF-8 byte of the responses; lower is likelier.

        sum over rows i, sum over positions t >= P_i of -log2 p(x_t | x_<t)
        -------------------------------------------------------------------
                    sum over rows i of len(texts[i] as UTF-8)

    Sums come first and the one division last, so long responses weigh more. Bytes make it comparable between
    tokenizers. Every token from P_i on costs bits, an end-of-sequence token too, though it adds no byte: keep it to
    score where the text stops, or leave it out of the ids.

    Args:
        model: an autoregressive model in eval mode; its own causal attention is used.
        sequences: pairs of (token ids of prompt + response, P = number of prompt tokens).
        texts: the decoded response of each sequence, without special tokens.
        batch_size: rows in one forward pass; does not change the result beyond rounding.

    Raises:
        UsageError: a prompt has no token (nothing precedes the first response token), a prompt is longer than its
            sequence, the numbers of sequences and texts differ, or there is no byte at all.
    """
    if len(sequences) != len(texts):
        raise UsageError(f"{len(sequences)} sequences but {len(texts)} texts; give one text for each sequence")
    bytes_of(texts)  # an error before the model's pass
    return per_byte(read(model, sequences, batch_size=batch_size), texts)


def per_byte(readings: Sequence[Reading], texts: Sequence[str]) -> float:
    """The same from readings. UsageError if there is no byte."""
    return sum(one.nats for one in readings) / math.log(2) / bytes_of(texts)


def per_token(readings: Sequence[Reading]) -> float:
    """Bits for each scored token; 0 where there is none."""
    return sum(one.nats for one in readings) / math.log(2) / max(1, sum(one.tokens for one in readings))


def agreement(readings: Sequence[Reading]) -> float:
    """Share of the scored tokens that are the model's own first choice, from 0 to 1; 0 where there is none."""
    return sum(one.agreed for one in readings) / max(1, sum(one.tokens for one in readings))


def bytes_of(texts: Sequence[str]) -> int:
    """UTF-8 bytes of all texts. UsageError if there is none."""
    size = sum(len(text.encode()) for text in texts)
    if size == 0:
        raise UsageError("the responses hold no text, so there is no bit per byte; score some that do")
    return size


def _read(model: PreTrainedModel, batch: Sequence[tuple[list[int], int]]) -> list[Reading]:
    width = max(len(ids) for ids, _ in batch)
    # Padding stands on the right, where a causal model never looks back from: its id does not matter.
    input_ids = torch.zeros(len(batch), width, dtype=torch.int64)
    targets = torch.full_like(input_ids, _IGNORE)
    attention_mask = torch.zeros_like(input_ids)
    for row, (ids, prompt_length) in enumerate(batch):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        targets[row, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
        attention_mask[row, : len(ids)] = 1
    logits = model(
        input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device), use_cache=False
    ).logits
    wanted = targets[:, 1:] != _IGNORE
    logits_MV = logits[:, :-1][wanted.to(model.device)].float()
    wanted_ids = targets[:, 1:][wanted].to(model.device)
    losses = cross_entropy(logits_MV, wanted_ids, reduction="none").cpu().double()
    agreed = (logits_MV.argmax(-1) == wanted_ids).cpu()
    counts = wanted.sum(-1).tolist()
    rows = zip(losses.split(counts), agreed.split(counts), counts, strict=True)
    return [Reading(float(nats.sum()), count, int(own.sum())) for nats, own, count in rows]
