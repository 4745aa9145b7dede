"""A small byte-level tokenizer and grammars with oracles that know nothing of llguidance."""

import itertools
import re
from collections.abc import Sequence
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opdlm.config import GenerationSettings
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.grammar import Grammar, Grammars

PAD, BOS, EOS, MASK_ID = 0, 1, 2, 3
_MERGES = (
    ("a", "b"),
    ("b", "c"),
    ("ab", "c"),
    ("t", "r"),
    ("u", "e"),
    ("tr", "ue"),
    ('"', ":"),
    ("1", "2"),
    ("Ġ", '"'),
)
TOKENS = SpecialTokens(MASK_ID, PAD, (EOS,))


@cache
def vocabulary() -> dict[str, int]:
    """Special tokens, printable ASCII (the space as byte-level tokenizers write it), and a few merges."""
    characters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    words = ["<pad>", "<s>", "</s>", "<|mask|>", *characters, *("".join(pair) for pair in _MERGES)]
    return {word: index for index, word in enumerate(words)}


VOCABULARY = 120
"""Rows of the models, a few more than tokens, as is usual."""


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE of the characters and merges above."""
    tokenizer = Tokenizer(models.BPE(vocabulary(), list(_MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_specials(tokenizer)


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """As SentencePiece makes them: U+2581 for the space, bytes as <0xNN>."""
    words = [word.replace("Ġ", "\u2581") for word in list(vocabulary())[:-1] if word != "Ċ"]
    ids = {word: index for index, word in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    merges = [pair for pair in _MERGES if "Ġ" not in pair]
    tokenizer = Tokenizer(models.BPE(ids, merges, byte_fallback=True, fuse_unk=True, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with_specials(tokenizer)


def _with_specials(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"mask_token": "<|mask|>"})
    return made


@cache
def grammars() -> Grammars:
    return Grammars(byte_level(), VOCABULARY, (EOS,))


def grammar_of(settings: GenerationSettings) -> Grammar:
    found = grammars().of(settings)
    assert found is not None
    return found


@cache
def language(regex: str, alphabet: str, longest: int) -> frozenset[str]:
    """Every string over `alphabet` of at most `longest` characters that matches `regex`: by trying all."""
    tried = ("".join(s) for n in range(longest + 1) for s in itertools.product(alphabet, repeat=n))
    return frozenset(text for text in tried if re.fullmatch(regex, text))


def has_completion(ids: Sequence[int], texts: frozenset[str]) -> bool:
    """Whether the masks in the response `ids` can be filled, and it be continued, to one of `texts` and a stop token.

    Slow: every way to place tokens over the characters of a text is tried, from left to right.
    """
    words = {index: word for word, index in vocabulary().items() if index > MASK_ID}

    def fits(text: str, place: int) -> bool:
        if place == len(ids):
            return True
        token = ids[place]
        if token == EOS:
            return text == ""
        if token == MASK_ID and text == "":
            return all(one == MASK_ID for one in ids[place:])
        if token == MASK_ID:
            return any(fits(text[n:], place + 1) for n in range(1, 4) if text[:n] in vocabulary())
        return text.startswith(words[token]) and fits(text[len(words[token]) :], place + 1)

    return any(fits(text, 0) for text in texts)
