"""From a rollout to the states that the student is trained on: which tokens are masked, and the packed sequences.

Shape letters: B rows, T columns of the rollout, C noised streams, S block size, N blocks, M supervised positions. The
state of a block at step r is what the decoder saw then: the tokens with commit_step >= r masked.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from opdlm.core.layout import CLEAN, PADDING
from opdlm.core.noise import uniform
from opdlm.core.packing import pack
from opdlm.core.types import NEVER, Geometry, Rollout, StateBatch

Selection = Literal["one_per_block", "all", "one_per_rollout", "random_mask"]


@dataclass(frozen=True)
class StateChoice:
    """Which states are trained on, and with which weights.

    Attributes:
        selection: "one_per_block": one realised step of each block, uniformly (the published recipe). "all": every
            realised step, in one noised stream each. "one_per_rollout": one global step of the row (Algorithm 1 as
            printed): blocks before it are finished, its own block is as it was, blocks behind it are still empty.
            "random_mask": a random number of tokens, at random places, in each block (OPDLM_off, and the BD3-LM
            objective).
        supervise_end: whether the stop token itself is in the loss.
        bound_weight: weigh each position by n/m of its block, n tokens of which m are masked: with "random_mask" the
            sum of cross-entropies is then an unbiased estimate of the masked-diffusion bound. Otherwise all are 1.
        clean_weight: above 0, the clean stream predicts its own next tokens too, each with this weight: a reading from
            left to right where prediction is shifted and context causal.
    """

    selection: Selection
    supervise_end: bool = True
    bound_weight: bool = False
    clean_weight: float = 0.0


def select_states(
    rollout: Rollout,
    geometry: Geometry,
    choice: StateChoice,
    seed: torch.Tensor,
    *,
    mask_token_id: int,
    capacity: float = 0,
) -> StateBatch:
    """Choose states of every row's blocks and pack them behind the clean text.

    Args:
        rollout: B rows.
        geometry: blocks are aligned to absolute positions, as in decoding.
        choice: which states.
        seed: [B] int64; decides every random choice of the row.
        mask_token_id: what stands at masked positions.
        capacity: most tokens of a sequence (`packing.pack`); default: as many as the longest document.
    """
    masked = _masked(rollout, geometry.block_size, choice.selection, seed)
    columns = torch.arange(rollout.input_ids.shape[1], device=masked.device)
    last = rollout.length - (rollout.stopped & (not choice.supervise_end)).long()
    supervised = masked & (columns < last[:, None])[:, None]
    weight = _inverse_share(masked, rollout, geometry.block_size) if choice.bound_weight else None
    present = _present(rollout, geometry.block_size, supervised, whole=choice.clean_weight > 0)
    states = _pack(rollout, geometry, mask_token_id, masked, supervised, weight, present, capacity)
    return _with_clean_text(states, rollout, choice.clean_weight, last) if choice.clean_weight else states


def _blocks(rollout: Rollout, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """commit_step as [B, N, S] blocks (padded with NEVER), and the realised steps of each block, [B, N]."""
    rows, width = rollout.commit_step.shape
    padded = -(-width // block_size) * block_size
    steps = rollout.commit_step.new_full((rows, padded), NEVER).long()
    steps[:, :width] = rollout.commit_step
    steps = steps.view(rows, -1, block_size)
    realised = steps.masked_fill(steps == NEVER, -1).amax(-1) + 1
    return steps, realised


def _masked(rollout: Rollout, block_size: int, selection: Selection, seed: torch.Tensor) -> torch.Tensor:
    """[B, C, T] bool: the masked positions of each stream; a block without any is absent from the stream."""
    steps, realised = _blocks(rollout, block_size)
    rows, count, _ = steps.shape
    block = torch.arange(count, device=steps.device)
    if selection == "one_per_block":
        chosen = (uniform(seed[:, None], block[None]) * realised).long()[:, None]
    elif selection == "all":
        chosen = torch.arange(int(realised.max()), device=steps.device)[None, :, None].expand(rows, -1, count)
    elif selection == "one_per_rollout":
        before = realised.cumsum(-1) - realised
        step = (uniform(seed, seed.new_zeros(())) * realised.sum(-1)).long()[:, None]
        # The chosen step of a block that lies behind it is negative (all masked), before it they are past its last.
        chosen = (step - before).clamp(min=0)[:, None]
    else:
        return _random_masks(rollout, block_size, seed)[:, None]
    masked = (steps[:, None] >= chosen[..., None]) & (chosen < realised[:, None])[..., None]
    return masked.flatten(2)[..., : rollout.input_ids.shape[1]]


def _random_masks(rollout: Rollout, block_size: int, seed: torch.Tensor) -> torch.Tensor:
    """[B, T] bool: in each block with n response tokens, m ~ U{1..n} of them; what was never filled stays masked."""
    steps, _ = _blocks(rollout, block_size)
    _, count, size = steps.shape
    position = torch.arange(count * size, device=steps.device).view(count, size)
    response = (steps >= 0) & (position < rollout.length[:, None, None])
    tokens = response.sum(-1)
    picked = 1 + (uniform(seed[:, None], position[None, :, 0], seed.new_ones(())) * tokens).long()
    order = uniform(seed[:, None, None], position[None], seed.new_full((), 2)).masked_fill(~response, 2.0)
    rank = order.argsort(-1).argsort(-1)
    behind = (position >= rollout.length[:, None, None]) & (position < rollout.end[:, None, None])
    masked = (response & (rank < picked[..., None])) | (behind & (tokens[..., None] > 0))
    return masked.flatten(1)[:, : rollout.input_ids.shape[1]]


def _inverse_share(masked: torch.Tensor, rollout: Rollout, block_size: int) -> torch.Tensor:
    """[B, C, T] float32 n/m of each position's block: the 1/t weight of the diffusion bound (arXiv 2503.09573)."""
    columns = torch.arange(masked.shape[-1], device=masked.device)
    response = (columns >= rollout.prompt_length[:, None]) & (columns < rollout.length[:, None])
    block = (columns // block_size).expand_as(response)
    empty = torch.zeros(response.shape[0], int(block.max()) + 1, device=response.device)
    tokens = empty.scatter_add(1, block, response.float()).gather(1, block)
    picked = empty.scatter_add(1, block, (masked[:, 0] & response).float()).gather(1, block)
    return (tokens / picked.clamp(min=1))[:, None]


def _pack(
    rollout: Rollout,
    geometry: Geometry,
    mask_token_id: int,
    masked: torch.Tensor,
    supervised: torch.Tensor,
    weight: torch.Tensor | None,
    present: torch.Tensor,
    capacity: float,
) -> StateBatch:
    """The tokens that are `present`, document after document, packed; `masked`, `supervised`, `weight`: [B, C, T]."""
    rank = (present.flatten(1).cumsum(1) - 1).view_as(present)  # of each token in its document
    packing = pack(rank[:, -1, -1] + 1, capacity)
    token = document, stream, position = present.nonzero(as_tuple=True)
    place = packing.place(document, rank[token])
    noised = (stream > CLEAN) & masked[document, stream - 1, position]
    ids = rollout.input_ids[document, position].masked_fill(noised, mask_token_id)

    row, of_stream, target = supervised.nonzero(as_tuple=True)
    predictor = row, of_stream + 1, target
    if geometry.prediction == "shifted":
        first = target % geometry.block_size == 0  # predicted by the last token of the clean block before
        predictor = row, (of_stream + 1).masked_fill(first, CLEAN), target - 1
    return StateBatch(
        input_ids=packing.laid(ids, place, mask_token_id),
        position_ids=packing.laid(position, place, 0),
        stream=packing.laid(stream, place, PADDING),
        document=packing.document_ids(document, place),
        row=row,
        sequence=packing.sequence[row],
        predictor=packing.start[row] + rank[predictor],
        position=target,
        weight=torch.ones(row.shape, device=row.device) if weight is None else weight.expand_as(masked)[supervised],
    )


def _present(rollout: Rollout, block_size: int, supervised: torch.Tensor, whole: bool) -> torch.Tensor:
    """[B, 1 + C, T] bool: the tokens of the clean stream (first) and of each noised one that the student must compute.

    A noised block is there where it has something to learn; the clean text up to the last block, which nobody sees, or
    with `whole` all of it.
    """
    rows, streams, width = supervised.shape
    columns = torch.arange(width, device=supervised.device)
    block = columns // block_size
    learnt = supervised.new_zeros(rows, streams, -(-width // block_size))
    learnt = learnt.scatter_reduce(2, block.expand_as(supervised), supervised, "amax")
    noised = learnt[:, :, block] & (columns < rollout.end[:, None])[:, None]
    clean = columns < (rollout.length if whole else rollout.end - block_size)[:, None]
    return torch.cat([clean[:, None], noised], 1)


def _with_clean_text(states: StateBatch, rollout: Rollout, weight: float, last: torch.Tensor) -> StateBatch:
    """The same sequences, in which the clean stream predicts the response before column `last` [B] too."""
    sequence, column = (states.stream == CLEAN).nonzero(as_tuple=True)
    row, position = states.document[sequence, column], states.position_ids[sequence, column] + 1
    chosen = (position >= rollout.prompt_length[row]) & (position < last[row])
    more = {"row": row, "sequence": sequence, "predictor": column, "position": position}
    more["weight"] = torch.full(row.shape, weight, device=row.device)
    return replace(states, **{name: torch.cat([getattr(states, name), more[name][chosen]]) for name in more})
