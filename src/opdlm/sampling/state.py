"""The state of the engine's slots, and what is handed out of them.

Shape letters: B slots, T columns, S block size, H steps of history, V vocabulary, A alternatives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch.nn.functional import pad

from opdlm.core.layout import block_start
from opdlm.core.propose import moved
from opdlm.core.types import NEVER, Rollout
from opdlm.sampling.request import Request
from opdlm.sampling.rules import MOST_NUMBERS, as_numbers, drafts

IDLE = -1
Numbered = tuple[int, Request]


@dataclass
class SlotState:
    """State tensors of some slots, one row each; idle ones compute along and change nothing.

    Attributes:
        ids: [B, T] int64, mask tokens where nothing is committed. commit_step, confidence: [B, T] as in Rollout.
        number: [B] int64, of the request in the slot, IDLE where there is none.
        first, end, seed: [B] int64 and may_stop: [B] bool, as in Request.
        start: [B] int64, first position of the current block. step: [B] int64 within it. forwards: [B] int64.
        drafted: [B] int64, drafts that stand in `ids` from `start` on; drafts: [B] int64, most that the request wants.
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, hold_end: [B] as in
            Request.
        rule: [B] int64 and numbers: [B, MOST_NUMBERS] float32, the commit rule (`rules.as_numbers`).
        top_ids, top_log_probability: [B, T, A] as in Rollout.
    """

    ids: torch.Tensor
    commit_step: torch.Tensor
    confidence: torch.Tensor
    number: torch.Tensor
    first: torch.Tensor
    end: torch.Tensor
    seed: torch.Tensor
    may_stop: torch.Tensor
    start: torch.Tensor
    step: torch.Tensor
    forwards: torch.Tensor
    drafted: torch.Tensor
    drafts: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    repetition_penalty: torch.Tensor
    presence_penalty: torch.Tensor
    frequency_penalty: torch.Tensor
    hold_end: torch.Tensor
    rule: torch.Tensor
    numbers: torch.Tensor
    top_ids: torch.Tensor
    top_log_probability: torch.Tensor

    @classmethod
    def of(
        cls,
        numbered: Sequence[Numbered],
        width: int,
        block_size: int,
        mask_token_id: int,
        device: torch.device,
        alternatives: int = 0,
    ) -> "SlotState":
        """The state of requests that begin, in `width` columns, with room for as many `alternatives`."""
        requests = [request for _, request in numbered]

        def column(name: str, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.tensor([getattr(request, name) for request in requests], dtype=dtype, device=device)

        rows = [[*request.ids, *[mask_token_id] * (width - len(request.ids))] for request in requests]
        ids = torch.tensor(rows, dtype=torch.int64, device=device).view(len(requests), width)
        first, rules = column("first"), [as_numbers(request.decoding) for request in requests]
        gap = (ids == mask_token_id) & (torch.arange(width, device=device) >= first[:, None])  # what is before is given
        return cls(
            ids=ids,
            commit_step=torch.where(gap, NEVER, -1).short(),
            confidence=torch.zeros(ids.shape, device=device),
            number=torch.tensor([number for number, _ in numbered], dtype=torch.int64, device=device),
            first=first,
            end=column("end"),
            seed=column("seed"),
            may_stop=column("may_stop", torch.bool),
            start=block_start(first, block_size),
            step=torch.zeros_like(first),
            forwards=torch.zeros_like(first),
            drafted=torch.zeros_like(first),
            drafts=torch.tensor([drafts(r.decoding) for r in requests], dtype=torch.int64, device=device),
            temperature=column("temperature", torch.float32),
            top_k=column("top_k"),
            top_p=column("top_p", torch.float32),
            min_p=column("min_p", torch.float32),
            repetition_penalty=column("repetition_penalty", torch.float32),
            presence_penalty=column("presence_penalty", torch.float32),
            frequency_penalty=column("frequency_penalty", torch.float32),
            hold_end=column("hold_end", torch.bool),
            rule=torch.tensor([index for index, _ in rules], dtype=torch.int64, device=device),
            numbers=torch.tensor([n for _, n in rules], device=device).view(len(requests), MOST_NUMBERS),
            top_ids=ids.new_zeros(*ids.shape, alternatives),
            top_log_probability=torch.zeros(*ids.shape, alternatives, device=device),
        )

    def written(self) -> torch.Tensor:
        """[B, T] bool: what stands in the responses so far."""
        return (self.commit_step >= 0) & (self.commit_step < NEVER)

    def write(self, position: torch.Tensor, where: torch.Tensor, token: torch.Tensor, confidence: torch.Tensor) -> None:
        """Commits tokens [B, n] at positions [B, n] `where` [B, n] says so."""
        step = self.step[:, None].clamp(max=NEVER - 1).short().expand_as(position)
        for values, new in ((self.ids, token), (self.commit_step, step), (self.confidence, confidence)):
            values.scatter_(1, position, torch.where(where, new, values.gather(1, position)))

    def write_alternatives(
        self, position: torch.Tensor, where: torch.Tensor, log_probability: torch.Tensor, count: int
    ) -> None:
        """The `count` most probable tokens by `log_probability` [B, n, V], likewise."""
        top = log_probability.clamp(min=-1e30).topk(count)  # finite where a grammar allows fewer tokens
        index = position[..., None].expand_as(top.indices)
        for values, new in ((self.top_ids, top.indices), (self.top_log_probability, top.values)):
            some = values[..., :count]
            some.scatter_(1, index, torch.where(where[..., None], new, some.gather(1, index)))

    def rows(self, index: torch.Tensor) -> "SlotState":
        """The slots `index` [b], in that order."""
        return SlotState(**{name: value[index] for name, value in self._tensors()})

    def put(self, index: torch.Tensor, other: "SlotState") -> None:
        """Overwrites the slots `index` [b] with those of `other`."""
        for name, value in self._tensors():
            value[index] = getattr(other, name)

    def with_idle(self, count: int) -> "SlotState":
        """`count` more slots, idle ones."""
        more = {name: pad(value, (*[0, 0] * (value.dim() - 1), 0, count)) for name, value in self._tensors()}
        more["number"][len(self.number) :] = IDLE
        return SlotState(**more)

    def widened(self, width: int, mask_token_id: int, alternatives: int) -> "SlotState":
        """At least `width` columns and room for as many `alternatives`."""
        extra = (0, max(0, width - self.ids.shape[1]))
        more = dict(self._tensors())
        more["ids"] = pad(self.ids, extra, value=mask_token_id)
        more["commit_step"] = pad(self.commit_step, extra, value=NEVER)
        more["confidence"] = pad(self.confidence, extra)
        deeper = (0, max(0, alternatives - self.top_ids.shape[-1]), *extra)
        more["top_ids"], more["top_log_probability"] = pad(self.top_ids, deeper), pad(self.top_log_probability, deeper)
        return SlotState(**more)

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [(one.name, getattr(self, one.name)) for one in fields(self)]


@dataclass
class Drift:
    """How the proposals of each slot's block moved in its last steps; kept while a row's rule looks at it.

    Attributes:
        before: [B, S, V] float32, log-probabilities of the step before.
        moves: [B, S, H] float32 nats, the newest last; inf where the block had no step before.
    """

    before: torch.Tensor
    moves: torch.Tensor

    @classmethod
    def unknown(cls, log_probability: torch.Tensor, steps: int) -> "Drift":
        """Before the first step of [B, S, V] proposals."""
        moves = torch.full((*log_probability.shape[:2], steps), torch.inf, device=log_probability.device)
        return cls(torch.zeros_like(log_probability), moves)

    def after(self, log_probability: torch.Tensor, first: torch.Tensor) -> "Drift":
        """One step later; `first` [B]: it was the first of the block."""
        newest = moved(log_probability, self.before)[..., None]
        moves = torch.cat([self.moves[..., 1:], newest], -1).masked_fill(first[:, None, None], torch.inf)
        return Drift(log_probability, moves)

    def resized(self, rows: int, steps: int) -> "Drift":
        """For more rows and at least `steps` steps; what is new is in its block's first step, or not known."""
        more = max(0, rows - len(self.before))
        moves = pad(self.moves, (max(0, steps - self.moves.shape[-1]), 0), value=torch.inf)
        return Drift(pad(self.before, (0, 0, 0, 0, 0, more)), pad(moves, (0, 0, 0, 0, 0, more), value=torch.inf))

    def rows(self, index: torch.Tensor) -> "Drift":
        return Drift(self.before[index], self.moves[index])


def stack(rows: Sequence[Rollout], pad_token_id: int) -> Rollout:
    """One rollout of all rows, padded on the right to the longest."""
    width = max(row.input_ids.shape[1] for row in rows)

    def padded(name: str, value: float) -> torch.Tensor:
        tensors = (getattr(row, name) for row in rows)
        return torch.cat([pad(tensor, (0, width - tensor.shape[1]), value=value) for tensor in tensors])

    def alternatives(name: str) -> torch.Tensor | None:
        tensors = [tensor for row in rows if (tensor := getattr(row, name)) is not None]
        if len(tensors) < len(rows):
            return None
        most = max(tensor.shape[2] for tensor in tensors)
        return torch.cat([pad(one, (0, most - one.shape[2], 0, width - one.shape[1])) for one in tensors])

    names = ("prompt_length", "length", "end", "stopped", "forwards")
    return Rollout(
        input_ids=padded("input_ids", pad_token_id),
        commit_step=padded("commit_step", NEVER),
        confidence=None if any(row.confidence is None for row in rows) else padded("confidence", 0.0),
        top_ids=alternatives("top_ids"),
        top_log_probability=alternatives("top_log_probability"),
        **{name: torch.cat([getattr(row, name) for row in rows]) for name in names},
    )
