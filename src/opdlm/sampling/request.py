"""One text to be written, with all that decides it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from opdlm.errors import ContextLengthError


class Grammar(Protocol):
    """What a text must be; `sampling/grammar.py` compiles it.

    Attributes:
        words: words of 32 bits in a mask over the vocabulary. stop_ids: tokens that end a text.
    """

    @property
    def words(self) -> int: ...

    @property
    def stop_ids(self) -> Sequence[int]: ...

    def matcher(self) -> Any:
        """An `LLMatcher` of llguidance, at the beginning of a text."""
        ...

    def over(self, slots: Any) -> Any:
        """What keeps rows of an engine to it: a `Constraining` (`sampling/constraining.py`)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be written, and how. The response depends on nothing else.

    Attributes:
        ids: the prompt; or a text with mask tokens, which are filled.
        first: position of the first token to write. end: position behind the last one.
        may_stop: whether a stop token or stop string ends it early.
        watched: whether the engine reports its drafts.
        alternatives: A, how many of the model's most probable tokens are kept for each that is written.
        seed: of its random draws.
        decoding: the commit rule with all its numbers, such as {"kind": "dynamic", "threshold": 0.9}.
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias,
            stop_strings, hold_end: as in `GenerationSettings`.
        grammar: what the response must be, or None. For a continuation alone.
    """

    ids: Sequence[int]
    first: int
    end: int
    may_stop: bool
    watched: bool = False
    alternatives: int = 0
    seed: int
    decoding: Mapping[str, Any]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    stop_strings: Sequence[str]
    hold_end: bool
    grammar: Grammar | None = None


def check_length(first: int, end: int, limit: int | None, block_size: int) -> None:
    """Raises ContextLengthError if a text that is written from `first` to `end`, in whole blocks, passes `limit`."""
    if limit is not None and -(-end // block_size) * block_size > limit:
        raise ContextLengthError(
            f"a text of {first} tokens and {end - first} new ones, in blocks of {block_size}, do not fit into the "
            f"model's context of {limit}; shorten the text or write fewer (--max-new-tokens)"
        )


def continuation(prompt: Sequence[int], *, max_new_tokens: int, seed: int, **controls: Any) -> Request:
    """Up to `max_new_tokens` tokens behind the prompt, fewer where a stop token comes. `controls`: as in Request."""
    end = len(prompt) + max_new_tokens
    return Request(ids=prompt, first=len(prompt), end=end, may_stop=True, seed=seed, **controls)


def filling(text: Sequence[int], *, mask_token_id: int, block_size: int, seed: int, **controls: Any) -> Request:
    """Every mask token in `text` replaced; no stop token ends it.

    What stands behind a gap is seen as far as its block reaches: the geometry is the one that was trained. The response
    ends with the last gap.
    """
    gaps = [position for position, token in enumerate(text) if token == mask_token_id]
    first, last = gaps[0], gaps[-1]
    seen = text[: last // block_size * block_size + block_size]
    return Request(ids=seen, first=first, end=last + 1, may_stop=False, seed=seed, **controls)
