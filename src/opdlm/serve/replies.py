"""What clients get: the objects of the OpenAI API, and what ours adds to them."""

import math
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from transformers import PreTrainedTokenizerBase

from opdlm.models.tokens import SpecialTokens
from opdlm.serve.loop import Snapshot

_LEAST = -9999.0
"""Log-probability of what is impossible: JSON has no infinity, and OpenAI writes this."""


@dataclass(frozen=True)
class Head:
    """What all objects of one answer begin with."""

    kind: str
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def of(self, choices: Iterable[dict[str, Any]], suffix: str = "", **more: Any) -> dict[str, Any]:
        """One object; `suffix`: of its kind."""
        name = {"chat.completion": "chatcmpl", "text_completion": "cmpl"}.get(self.kind, self.kind)
        begin = {"id": f"{name}-{self.id}", "object": self.kind + suffix, "created": self.created, "model": self.model}
        return {**begin, "choices": list(choices), **more}


def finish_reason(snapshot: Snapshot) -> str | None:
    """Why it ended; None while it goes on."""
    if not snapshot.done:
        return None
    return "stop" if snapshot.stopped else "length"


def usage(prompts: Sequence[Sequence[int]], finished: Sequence[Snapshot], written: int) -> dict[str, Any]:
    """What an answer took. Ours: forwards (the prompt's own aside), and the tokens that one wrote on average.

    `written`: tokens of the responses, all together.
    """
    read, forwards = sum(map(len, prompts)), sum(snapshot.forwards for snapshot in finished)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "forwards": forwards,
        "tokens_per_forward": round(written / max(1, forwards), 4),
    }


class TokenTexts:
    """Single tokens as text, for log-probabilities and drafts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: SpecialTokens) -> None:
        self._tokenizer, self._tokens, self._known = tokenizer, tokens, dict[int, str]()

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return self._known[token]

    def chat_logprobs(self, snapshot: Snapshot, begin: int) -> dict[str, Any]:
        """Of what is sure from position `begin` on, as chat completions have them; the stop token has no text."""
        content = []
        for place in range(begin, self._end(snapshot)):
            one = self._entry(snapshot.ids[place], _log(snapshot.confidence[place]))
            others = [self._entry(*pair) for pair in snapshot.top[place]] if snapshot.top else []
            content.append(one | {"top_logprobs": others})
        return {"content": content, "refusal": None}

    def completion_logprobs(self, snapshot: Snapshot, begin: int) -> dict[str, Any]:
        """Likewise, as text completions have them."""
        end = self._end(snapshot)
        tokens = [self(token) for token in snapshot.ids[snapshot.first : end]]
        offsets = [0, *accumulate(map(len, tokens))]
        skipped, top = begin - snapshot.first, snapshot.top
        return {
            "tokens": tokens[skipped:],
            "token_logprobs": [_log(chance) for chance in snapshot.confidence[begin:end]],
            "top_logprobs": [self._by_text(row) for row in top[begin:end]] if top else None,
            "text_offset": offsets[skipped:-1],
        }

    def _by_text(self, row: Sequence[tuple[int, float]]) -> dict[str, float]:
        """Of several tokens with the same text the most probable, which comes first."""
        return {self(token): max(log, _LEAST) for token, log in reversed(row)}

    def _end(self, snapshot: Snapshot) -> int:
        """Behind the last token that is sure and no stop token."""
        stops = snapshot.done and snapshot.ids[snapshot.sure - 1] in self._tokens.stop_token_ids
        return snapshot.sure - stops

    def draft(self, snapshot: Snapshot, begin: int) -> dict[str, Any]:
        """The response as it is, from position `begin` on: a client puts it in place of what it has from there. `start`
        counts from the response's first token, `position` from the prompt's.

        Each token with its probability; None where nothing is known. A token without a probability is a draft that the
        next forward verifies, or, between gaps, given.
        """
        pairs = zip(snapshot.ids[begin:], snapshot.confidence[begin:], strict=True)
        tokens = [self._drafted(token, chance) for token, chance in pairs]
        start, forwards = begin - snapshot.first, snapshot.forwards
        return {"start": start, "position": begin, "tokens": tokens, "forwards": forwards}

    def _drafted(self, token: int, chance: float) -> dict[str, Any] | None:
        if not chance and token == self._tokens.mask_token_id:
            return None
        return {"token": self(token), "id": token, "probability": round(chance, 4) if chance else None}

    def _entry(self, token: int, log: float) -> dict[str, Any]:
        text = self(token)
        # Part of a character has no text, and what bytes it stands for is the tokenizer's own matter.
        return {"token": text, "logprob": max(log, _LEAST), "bytes": None if "\ufffd" in text else list(text.encode())}


def _log(probability: float) -> float:
    return max(math.log(probability), _LEAST) if probability > 0 else _LEAST
