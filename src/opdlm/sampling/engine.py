"""The fast sampler: batched, with a KV cache, rows that come, advance and go on their own.

Each slot of the batch is in its own place of its own text; one forward a step moves all of them: by block diffusion
(`denoising.py`), or by drafts that are verified (`verifying.py`). Requests of one model that are written in two ways
take turns: in the order in which they came, one way after the other.

Requests may be added and cancelled between any two steps. The device is asked once a step, for all rows together, which
of them are done.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import takewhile
from numbers import Integral

import torch
from transformers import PreTrainedTokenizerBase

from opdlm.core.types import Rollout
from opdlm.errors import UsageError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.denoising import Denoising, Step
from opdlm.sampling.drafters import drafter_of
from opdlm.sampling.request import Request, check_length
from opdlm.sampling.slots import Draft, Slots
from opdlm.sampling.state import stack
from opdlm.sampling.stopping import StopStrings
from opdlm.sampling.verifying import Verifying
from opdlm.sampling.ways import Way, way_of


@dataclass(frozen=True)
class Completion:
    """A text that is done: the number of its request, and a rollout of one row."""

    request: int
    rollout: Rollout


Event = Draft | Completion


class Engine:
    """Writes texts, at most `batch_size` at a time: `add` requests, call `step` until it is `idle`.

    A response depends on its request alone, not on what else is in the batch, came before it or was cancelled.
    """

    def __init__(
        self,
        model: BlockDiffusionModel,
        tokens: SpecialTokens,
        batch_size: int = 32,
        tokenizer: PreTrainedTokenizerBase | None = None,
        observer: Callable[[Step], None] | None = None,
    ) -> None:
        """`tokenizer`: needed for stop strings alone. UsageError for a batch size below 1."""
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise UsageError(f"batch_size is {batch_size!r}; it must be a whole number, at least 1")
        self.model, self.tokens, self.batch_size, self.observer = model, tokens, batch_size, observer
        self.stop_ids = torch.tensor(tokens.stop_token_ids, device=model.device)
        self._stop_strings = lru_cache(maxsize=64)(partial(StopStrings, tokenizer))
        self._waiting: deque[tuple[int, Request]] = deque()
        self._next = 0
        self._take(way_of(model, "sequential"))

    # --- requests -----------------------------------------------------------------------------------------------

    def add(self, request: Request) -> int:
        """The request's number, by which events name it. It is admitted in one of the next steps, in turn.

        Raises: as `check`.
        """
        self.check(request)
        if self.idle:
            self._slots.prefix = None  # a new burst; what it has in common is not known yet
        number, self._next = self._next, self._next + 1
        self._waiting.append((number, request))
        return number

    @torch.inference_mode()
    def cancel(self, number: int) -> bool:
        """Forget a request, waiting or being written; no event names it any more. Whether there was such a one."""
        before = len(self._waiting)
        self._waiting = deque(one for one in self._waiting if one[0] != number)
        if len(self._waiting) < before:
            return True
        slot = self._slots.slot_of(number)
        if slot is None:
            return False
        self._slots.drop(slot)
        return True

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being written."""
        return not self._waiting and not self._slots.requests

    @property
    def waiting(self) -> int:
        """Requests that are not admitted yet."""
        return len(self._waiting)

    @property
    def writing(self) -> int:
        """Requests that are being written."""
        return len(self._slots.requests)

    @property
    def query_tokens(self) -> int:
        """All tokens computed so far, prompts and idle slots included."""
        return self._slots.query_tokens

    # --- one step -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One forward for all rows.

        The tensors of its events are inference tensors, which no training can use; `write` makes ordinary ones.
        """
        events = self._drafts(self._admit())
        slots = self._slots
        if not slots.requests:
            return events
        events += [Completion(number, row) for number, row in self._decoding.step()]
        return events + self._drafts(range(len(slots.held)))

    @torch.inference_mode()
    def _take(self, way: Way) -> None:
        """Empty slots for requests that are written this way."""
        one = way == "checked"  # token by token, wherever blocks begin
        self._way = way
        size = 1 if one else None
        self._slots = Slots(self.model, self.batch_size, self.tokens.mask_token_id, self._stop_strings, size)
        if way == "denoised":
            self._decoding = Denoising(self._slots, self.stop_ids, self._ends, self.observer)
        else:
            self._decoding = Verifying(self._slots, self._ends, drafter_of(self._slots))

    def _admit(self) -> list[int]:
        """Take waiting requests into slots, as many as are written in the same way; returns these slots."""
        if self._waiting and not self._slots.requests and (way := self._way_of(self._waiting[0])) != self._way:
            spent = self._slots.query_tokens
            self._take(way)
            self._slots.query_tokens = spent
        turn = deque(takewhile(lambda one: self._way_of(one) == self._way, self._waiting))
        count = len(turn)
        slots = self._slots.admit(turn)
        for _ in range(count - len(turn)):
            self._waiting.popleft()
        return slots

    def _way_of(self, numbered: tuple[int, Request]) -> Way:
        return way_of(self.model, str(numbered[1].decoding["kind"]))

    def _drafts(self, slots: Sequence[int]) -> list[Event]:
        """Of the watched rows among `slots`."""
        held = [(slot, one) for slot in slots if (one := self._slots.held[slot]) is not None]
        return [*self._slots.drafts([slot for slot, (_, request) in held if request.watched])]

    def _ends(self, block: torch.Tensor) -> torch.Tensor:
        """[B, S] bool: tokens after which a text ends, once everything before them is committed."""
        slots, state = self._slots, self._slots.state
        ends = torch.isin(state.ids.gather(1, block), self.stop_ids)
        groups: dict[tuple[str, ...], list[int]] = {}
        for slot, one in enumerate(slots.held):
            if one is not None and one[1].stop_strings:
                groups.setdefault(tuple(one[1].stop_strings), []).append(slot)
        for strings, members in groups.items():
            index = torch.tensor(members, device=block.device)
            ends[index] |= self._stop_strings(strings).completed(state.ids[index], block[index], state.first[index])
        return ends & state.may_stop[:, None]

    def check(self, request: Request) -> None:
        """Whether it could be written: asks nothing of the device, and may be called from any thread.

        Raises:
            UsageError: nothing to write, a token that does not exist, or a stop string that cannot be found.
            ContextLengthError: the text would be longer than the model's context.
        """
        if not request.ids or not 0 <= request.first < request.end:
            raise UsageError("a request has no token to begin with, or nothing to write; give a prompt and a length")
        if way_of(self.model, str(request.decoding["kind"])) == "checked" and not request.may_stop:
            raise UsageError("setting decoding: 'checked' writes from left to right and fills no gaps; choose another")
        if request.grammar is not None and not request.may_stop:
            raise UsageError("a grammar says what a whole response is, not what fills gaps; leave one out")
        vocabulary = self._slots.vocabulary
        if not all(0 <= token < vocabulary for token in request.ids):
            raise UsageError(f"a token of the prompt does not exist; ids go from 0 to {vocabulary - 1}")
        if not all(0 <= int(token) < vocabulary for token in request.logit_bias):
            raise UsageError(
                f"setting logit_bias: it names a token that does not exist; ids go from 0 to {vocabulary - 1}"
            )
        if request.stop_strings:
            self._stop_strings(tuple(request.stop_strings))
        check_length(request.first, request.end, self.model.max_length, self.model.geometry.block_size)

    # --- loops over it ------------------------------------------------------------------------------------------

    def finished(self, requests: Sequence[Request]) -> Iterator[tuple[int, Rollout]]:
        """(index among `requests`, rollout of one row) of each, as they finish. The engine must be idle before.

        Whoever stops listening cancels the rest.
        """
        if not self.idle:
            raise RuntimeError("the engine is busy with other requests, whose events would be lost")
        for request in requests:
            self.check(request)
        index = {self.add(request): place for place, request in enumerate(requests)}
        try:
            while not self.idle:
                for event in self.step():
                    if isinstance(event, Completion):
                        yield index.pop(event.request), stack([event.rollout], self.tokens.pad_token_id)
        finally:
            for number in index:
                self.cancel(number)

    def write(self, requests: Sequence[Request]) -> Rollout:
        """One row for each request, in their order. Raises UsageError where there is none."""
        if not requests:
            raise UsageError("there is nothing to write; give at least one request")
        rows = dict(self.finished(requests))
        return stack([rows[place] for place in range(len(requests))], self.tokens.pad_token_id)
