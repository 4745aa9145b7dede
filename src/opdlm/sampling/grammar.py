"""What a text must be, a JSON schema, a regular expression or a grammar, compiled for one tokenizer by llguidance.

A grammar speaks of bytes; llguidance says which tokens may come next. Where only one can, it is forced: the grammar
decides the bytes, and of them the tokens are as the tokenizer itself would cut them.
"""

import json
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from opdlm.config import GenerationSettings
from opdlm.errors import MissingExtraError, UsageError
from opdlm.sampling.compiling import Trial, compiled, one_line
from opdlm.sampling.constraining import Constraining
from opdlm.sampling.slots import Slots

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class Grammar:
    """A compiled grammar, shared by all requests that want it.

    Attributes:
        words: words of 32 bits in a mask over the vocabulary. stop_ids: tokens that end a text.
    """

    def __init__(self, matcher: "LLMatcher", words: int, stop_ids: Sequence[int]) -> None:
        self._matcher, self.words, self.stop_ids = matcher, words, tuple(stop_ids)

    def matcher(self) -> "LLMatcher":
        """At the beginning of a text."""
        return self._matcher.deep_copy()

    def over(self, slots: Slots) -> Constraining:
        """What keeps the rows of these slots to their grammars, whichever these are."""
        return Constraining(slots)


class Grammars:
    """Compiles the grammars of one model's texts, and keeps the latest."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, stop_ids: Sequence[int]) -> None:
        """`vocabulary`: rows of the LM head.

        Raises:
            MissingExtraError: llguidance is not installed.
            UsageError: the model has no stop token, or a tokenizer whose bytes are not known.
        """
        library, self._stop_ids = _library(), tuple(stop_ids)
        if not stop_ids:
            raise UsageError("this model has no stop token, so a text that must end could not; leave the grammar out")
        described = _described(tokenizer, max(vocabulary, len(tokenizer)), self._stop_ids)
        self._trial = Trial(described)
        self._tables = _tables(library, described)
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def of(self, settings: GenerationSettings) -> Grammar | None:
        """None where the settings ask for none. UsageError for one that is not valid, or says what is not supported."""
        if settings.constraint is None:
            return None
        kind, value = settings.constraint
        try:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"setting {kind}: it has half of a surrogate pair, half a character; correct its encoding"
            ) from error
        except (TypeError, ValueError) as error:
            raise UsageError(f"setting {kind}: this is no JSON ({error}); correct it") from error
        except RecursionError as error:
            raise UsageError(f"setting {kind}: it is nested too deeply; make it flatter") from error
        return self._compiled(kind, text)

    def _compile(self, kind: str, text: str) -> Grammar:
        self._trial.check(kind, text)
        made = compiled(self._tables, kind, text)
        return Grammar(made, (self._tables.vocab_size + 31) // 32, self._stop_ids)


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtraError(
            "JSON schemas, regular expressions and grammars need llguidance; install it with: "
            "pip install 'opdlm[grammar]'"
        ) from error
    return llguidance


def _described(tokenizer: PreTrainedTokenizerBase, vocabulary: int, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Arguments of `LLTokenizer`, as `llguidance.hf.from_tokenizer` finds them."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UsageError("the bytes of this tokenizer's tokens are not known; grammars need a fast one")
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return {"tokenizer": backend.to_str(), "n_vocab": vocabulary, "eos_token": list(stop_ids)}


def _tables(library: Any, described: dict[str, Any]) -> "LLTokenizer":
    try:
        return library.LLTokenizer(**described)
    except ValueError as error:
        raise UsageError(
            f"the bytes of this tokenizer's tokens are not known ({one_line(str(error))}); grammars need a fast "
            "byte-level or byte-fallback one"
        ) from error
