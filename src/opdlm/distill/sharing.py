"""A rollout of several processes: each writes its share of the responses, and then all have the text of all."""

from dataclasses import replace

import torch

from opdlm.distill.rollout import Written
from opdlm.distill.step import Batch, Plan
from opdlm.parallel.ranks import Ranks
from opdlm.sampling.state import stack


def shared(plan: Plan, ranks: Ranks, pad_token_id: int, device: torch.device) -> Plan:
    """The same plan, whose `write` every process calls with the whole batch.

    The writer's weights are whole in every process meanwhile: texts take different numbers of forwards, so that none
    can wait for another.
    """
    if ranks.count == 1:
        return plan

    def write(batch: Batch) -> Written:
        mine, written = range(len(batch.prompts))[ranks.share], None
        with ranks.whole(plan.writer), ranks.agreed():
            if mine:
                written = plan.write(batch.rows(mine))
                written = replace(written, rollout=written.rollout.to("cpu"))  # it goes to other devices
        parts = ranks.gathered(written)
        return _joined([part for part in parts if part is not None], pad_token_id, device)

    return replace(plan, write=write)


def _joined(parts: list[Written], pad_token_id: int, device: torch.device) -> Written:
    """The rows in the order of their prompts: of n processes, process i wrote i, i + n, i + 2n ..."""
    order = torch.arange(sum(len(part.rollout.length) for part in parts))
    place = torch.cat([order[number :: len(parts)] for number in range(len(parts))])
    rollout = stack([part.rollout for part in parts], pad_token_id).rows(place.argsort())
    return Written(rollout.to(device), sum(part.query_tokens for part in parts), parts[0].on_policy)
