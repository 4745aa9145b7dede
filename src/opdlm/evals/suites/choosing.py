"""Answers multiple choice by likelihood: no text is written."""

from collections.abc import Callable, Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from opdlm.evals.problem import Asked, Options
from opdlm.evals.scoring import Text
from opdlm.evals.writers import Answer, Writer
from opdlm.models.tokens import encode_text

_AT_ONCE = 8  # problems


def choosing(tokenizer: PreTrainedTokenizerBase, likelihoods: Callable[[Sequence[Text]], list[float]]) -> Writer:
    """A writer whose answer is the option with the largest log-likelihood for each of its characters.

    That is acc_norm of lm-evaluation-harness; the scores are kept, of which the largest is its acc. What it answered
    once it knows, so that a second decoding of the same model costs nothing.

    Args:
        likelihoods: nats of the continuation of each text.
    """
    known: dict[Options, Answer] = {}

    def write(prompts: list[Asked]) -> Iterator[tuple[int, Answer]]:
        for first in range(0, len(prompts), _AT_ONCE):
            group = prompts[first : first + _AT_ONCE]
            problems = [one for one in group if isinstance(one, Options)]
            assert len(problems) == len(group), "only problems with options are answered by choosing"
            new = [one for one in problems if one not in known]
            scores = iter(likelihoods([text for one in new for text in texts_of(tokenizer, one)]))
            for one in new:
                known[one] = _best(one, [next(scores) for _ in one.options])
            yield from enumerate((known[one] for one in problems), first)

    return write


def texts_of(tokenizer: PreTrainedTokenizerBase, asked: Options) -> list[Text]:
    """The text with each option behind it, a space between; what the text alone has in tokens is context."""
    given = len(encode_text(tokenizer, asked.text))
    whole = (encode_text(tokenizer, f"{asked.text} {option}") for option in asked.options)
    return [Text(tuple(ids[:given]), tuple(ids[given:])) for ids in whole]


def _best(asked: Options, scores: list[float]) -> Answer:
    best = max(range(len(scores)), key=lambda index: scores[index] / len(asked.options[index]))
    return Answer(asked.options[best], 0, 0, scores=tuple(scores))
