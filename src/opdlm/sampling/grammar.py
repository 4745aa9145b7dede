"""What a text must be, a JSON schema, a regular expression or a grammar, compiled for one tokenizer by llguidance.

A grammar speaks of bytes; llguidance says which tokens may come next. Where only one can, it is forced: the grammar
decides the bytes, and of them the tokens are as the tokenizer itself would cut them.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from opdlm.config import GenerationSettings
from opdlm.errors import MissingExtraError, UsageError
from opdlm.sampling.constraining import Constraining
from opdlm.sampling.slots import Slots

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON on one line, as Python's json.dumps writes it: no room for endless white space, and the most is forced."""


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
        self._library, self._stop_ids = _library(), tuple(stop_ids)
        if not stop_ids:
            raise UsageError("this model has no stop token, so a text that must end could not; leave the grammar out")
        self._tables = _tables(tokenizer, max(vocabulary, len(tokenizer)), self._stop_ids)
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def of(self, settings: GenerationSettings) -> Grammar | None:
        """None where the settings ask for none. UsageError for one that is not valid, or says what is not supported."""
        if settings.constraint is None:
            return None
        kind, value = settings.constraint
        text = json.dumps(value, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"setting {kind}: it has half of a surrogate pair, half a character; correct its encoding"
            ) from error
        return self._compiled(kind, text)

    def _compile(self, kind: str, text: str) -> Grammar:
        value, matcher = json.loads(text), self._library.LLMatcher
        if kind == "json_schema":
            source = matcher.grammar_from_json_schema(value, defaults=_LAYOUT)
        elif kind == "regex":
            source = matcher.grammar_from_regex(value)
        else:
            source = matcher.grammar_from_lark(value)
        failed, messages = matcher.validate_grammar_with_warnings(source, self._tables)
        if failed:
            raise UsageError(f"setting {kind}: {_one_line(messages[0])}; correct it")
        made = matcher(self._tables, source, log_level=0)
        if made.is_error():
            raise UsageError(f"setting {kind}: {_one_line(made.get_error())}; make it simpler")
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


def _tables(tokenizer: PreTrainedTokenizerBase, vocabulary: int, stop_ids: Sequence[int]) -> "LLTokenizer":
    from llguidance.hf import from_tokenizer

    try:
        return from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(stop_ids))  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(
            f"the bytes of this tokenizer's tokens are not known ({_one_line(str(error))}); grammars need a fast "
            "byte-level or byte-fallback one"
        ) from error


def _one_line(message: str) -> str:
    """llguidance draws where the mistake is, over several lines; the first says what it is."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return " ".join([lines[0].rstrip(":"), *(f"({one.removeprefix('error:').strip()})" for one in errors)])
