"""How well an autoregressive model explains given text: bits per byte."""

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from opdlm.errors import UsageError

_IGNORE = -100


@torch.no_grad()
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
    if any(not 1 <= prompt_length <= len(ids) for ids, prompt_length in sequences):
        raise UsageError("a sequence has no prompt token, or fewer tokens than its prompt; begin it with one at least")
    size = sum(len(text.encode()) for text in texts)
    if size == 0:
        raise UsageError("the responses hold no text, so there is no bit per byte; score some that do")
    ordered = sorted(sequences, key=lambda item: len(item[0]))  # rows of one length need no padding
    nats = sum(_nats(model, ordered[first : first + batch_size]) for first in range(0, len(ordered), batch_size))
    return nats / math.log(2) / size


def _nats(model: PreTrainedModel, batch: Sequence[tuple[list[int], int]]) -> float:
    """Negative log-likelihood of the responses of one batch, in nats."""
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
    losses = cross_entropy(logits_MV, targets[:, 1:][wanted].to(model.device), reduction="none")
    return float(losses.cpu().double().sum())
