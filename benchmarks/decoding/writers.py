"""Who answers: the engine, the AR model, and the usual block-diffusion loop, each timed in the same way."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decoding.peer_loop import PeerLoop
from opdlm.config import GenerationSettings
from opdlm.sampling.api import DiffusionLM

Prompts = list[list[int]]


@dataclass(frozen=True)
class Answers:
    """One pass over some prompts.

    Attributes:
        responses: token ids, up to and including the stop token.
        forwards: forwards after the prompts' pass, summed over the rows that took part.
        seconds: wall time of the pass.
        inside: the part of `seconds` that was spent in the model.
    """

    responses: list[list[int]]
    forwards: int
    seconds: float
    inside: float

    @property
    def tokens(self) -> int:
        return sum(map(len, self.responses))

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / self.forwards

    @property
    def outside(self) -> float:
        """Share of the time outside the model."""
        return 1 - self.inside / self.seconds


@dataclass(frozen=True)
class Writer:
    """Somebody who answers.

    Attributes:
        write: prompts -> (responses, forwards), as in `Answers`.
        model, calls: time in these methods of the model is `inside`.
    """

    write: Callable[[Prompts], tuple[list[list[int]], int]]
    model: torch.nn.Module
    calls: tuple[str, ...]

    def answer(self, prompts: Prompts) -> Answers:
        with stopwatch(self.model, self.calls) as spent:
            began = time.perf_counter()
            responses, forwards = self.write(prompts)
            seconds = time.perf_counter() - began
        return Answers(responses, forwards, seconds, sum(spent))


def engine(student: DiffusionLM, settings: GenerationSettings, batch_size: int) -> Writer:
    """The project's own. The model builds its masks and writes its cache inside `hidden`."""

    def write(prompts: Prompts) -> tuple[list[list[int]], int]:
        rollout = student.written(prompts, settings, batch_size)
        rows = zip(rollout.input_ids.tolist(), rollout.prompt_length.tolist(), rollout.length.tolist(), strict=True)
        return [ids[begin:end] for ids, begin, end in rows], int(rollout.forwards.sum())

    return Writer(write, student.model, ("hidden", "logits"))


def autoregressive(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, batch_size: int
) -> Writer:
    """`generate` as a user of transformers calls it. A forward a token: the prompts' pass gives the first."""
    tokenizer.padding_side = "left"
    stop = tokenizer.eos_token_id

    def write(prompts: Prompts) -> tuple[list[list[int]], int]:
        responses: list[list[int]] = []
        for first in range(0, len(prompts), batch_size):
            batch = tokenizer.pad({"input_ids": prompts[first : first + batch_size]}, return_tensors="pt")
            output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
            written = output[:, batch["input_ids"].shape[1] :].tolist()
            responses += [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in written]
        return responses, sum(map(len, responses))

    return Writer(write, model, ("forward",))


def peer_loop(student: DiffusionLM, settings: GenerationSettings, batch_size: int, crop: bool = False) -> Writer:
    """The usual loop, with the student's decoder."""
    decoder = student.model.model
    loop = PeerLoop(decoder, student.model.geometry, student.tokens, settings, batch_size, crop)
    return Writer(loop.generate, decoder, ("forward",))


@contextmanager
def stopwatch(owner: torch.nn.Module, names: Sequence[str]) -> Iterator[list[float]]:
    """Lists the seconds of every call of the methods `names`, which must not call each other."""
    spent: list[float] = []

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = method(*args, **kwargs)
            spent.append(time.perf_counter() - began)
            return result

        return call

    own = {name: vars(owner).get(name) for name in names}  # a compiled forward is one
    for name in names:
        setattr(owner, name, timed(getattr(owner, name)))
    try:
        yield spent
    finally:
        for name, method in own.items():
            if method is None:
                delattr(owner, name)
            else:
                setattr(owner, name, method)
