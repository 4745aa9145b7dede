"""Stop strings: found in ids where decoding finds them in text, wherever token and block borders fall."""

from collections.abc import Sequence
from itertools import islice, product

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from opdlm.config import GenerationSettings, settings_from
from opdlm.core.types import Rollout
from opdlm.errors import ConfigError, UsageError
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Engine
from opdlm.sampling.requests import fillings
from opdlm.sampling.stopping import StopStrings
from rollouts import TOKENS, random_prompts, student
from sampling_support import generated
from support import MASK, tiny_tokenizer

NEVER_STOPS = SpecialTokens(MASK, 0, ())


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """MASK tokens of one to three letters (a space is one): the same text has many token borders."""
    letters = ["Ġ", *"abcdefgh"]
    words = [*letters, *map("".join, product(letters, repeat=2)), *map("".join, product(letters[:3], repeat=3))]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(islice(words, MASK))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {"characters": tiny_tokenizer(), "byte-level": byte_level_tokenizer()}
every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return "".join(str(tokenizer.decode([token])) for token in ids)


def completes(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], strings: Sequence[str]) -> bool:
    """Whether the last of `ids` makes a string appear that ends in it."""
    before, text = text_of(tokenizer, ids[:-1]), text_of(tokenizer, ids)
    ends = (i + len(s) for s in strings for i in range(len(text)) if text.startswith(s, i))
    return any(end > len(before) for end in ends)


@every_tokenizer
def test_a_string_is_found_where_decoding_finds_it(kind: str) -> None:
    """Else a string that begins or ends inside a token, or in the given text, would be missed or found too early."""
    tokenizer = TOKENIZERS[kind]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 9 if kind == "characters" else MASK, (6, 40), generator=generator)
    begin = torch.tensor([0, 1, 5, 9, 20, 39])
    position = torch.arange(40).expand(6, -1)
    for strings in (["a"], ["ab", "ca"], ["bca", "dab"], ["abcde"], ["a b", " c"] if kind == "byte-level" else ["fe"]):
        found = StopStrings(tokenizer, strings).completed(ids, position, begin)
        for row, first in enumerate(begin.tolist()):
            for column in range(first, 40):
                expected = completes(tokenizer, ids[row, first : column + 1].tolist(), strings)
                assert found[row, column] == expected, (strings, row, column)


@pytest.mark.parametrize(
    ("strings", "message"), [(["é"], "choose another"), (["a", ""], "is empty"), (["a"], "need the tokenizer")]
)
def test_what_cannot_be_found_is_refused(strings: list[str], message: str) -> None:
    """Else a response would run to its cap though the user asked for an end."""
    tokenizer = None if message == "need the tokenizer" else byte_level_tokenizer()
    with pytest.raises(UsageError, match=message):
        decoded(strings, tokenizer)


def test_what_would_take_minutes_and_gigabytes_is_refused() -> None:
    """Else one long stop string would take the machine's memory: 5.6 GB for 10,000 characters."""
    for strings in ("x" * 257, ["ab"] * 2049):
        with pytest.raises(ConfigError, match=r"setting stop_strings: .* at most 256 and 4096"):
            settings_from(GenerationSettings, {"stop_strings": strings})
    assert settings_from(GenerationSettings, {"stop_strings": ["a" * 256] * 16})


def decoded(
    strings: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    tokens: SpecialTokens = NEVER_STOPS,
    **changes: object,
) -> Rollout:
    chosen = {"temperature": 1.0, "max_new_tokens": 18, "decoding": "dynamic:0.5", "stop_strings": strings} | changes
    settings = GenerationSettings.model_validate(chosen)
    return generated(student(), tokens, settings, random_prompts(), batch_size=3, tokenizer=tokenizer)


def check_against_text(stopped: Rollout, free: Rollout, tokenizer: PreTrainedTokenizerBase, strings: list[str]) -> int:
    """Each row is that of `free` up to the first token with which its decoded response holds one of `strings`.

    Returns how many rows a string ended.
    """
    ended = 0
    for row in range(len(free.length)):
        begin, length = int(free.prompt_length[row]), int(free.length[row])
        ids = free.input_ids[row].tolist()
        holds = (k for k in range(begin + 1, length + 1) if any(s in text_of(tokenizer, ids[begin:k]) for s in strings))
        expected = next(holds, None)
        ended += expected is not None
        assert int(stopped.length[row]) == (expected or length), (row, strings)
        assert bool(stopped.stopped[row]) == (expected is not None or bool(free.stopped[row]))
        assert stopped.end[row] == -(-stopped.length[row] // 4) * 4
        kept = slice(0, expected or length)
        for name in ("input_ids", "commit_step"):
            assert torch.equal(getattr(stopped, name)[row, kept], getattr(free, name)[row, kept])
    return ended


@every_tokenizer
@pytest.mark.parametrize("decoding", ["dynamic:0.5", "static"])
def test_a_response_ends_with_the_token_that_completes_a_string(kind: str, decoding: str) -> None:
    """Else users would get text behind their stop string, or lose what stands before it.

    Strings are cut out of the free responses: inside a token, across tokens, across the borders of blocks (of four).
    """
    tokenizer = TOKENIZERS[kind]
    free = decoded([], tokenizer, decoding=decoding)
    ended = 0
    for row, (offset, length) in enumerate([(1, 1), (2, 3), (7, 2), (2, 7), (9, 4)]):
        begin = int(free.prompt_length[row])
        text = text_of(tokenizer, free.input_ids[row, begin : int(free.length[row])].tolist())
        for shift in (0, 1, 2, 3):
            strings = [text[offset + shift : offset + shift + length], "hhhhh", "zz"][
                : 2 if kind == "byte-level" else 3
            ]
            ended += check_against_text(decoded(strings, tokenizer, decoding=decoding), free, tokenizer, strings)
    assert ended >= 20, "each string ends at least the row that it is from"


def test_stop_strings_and_stop_tokens_end_a_row_whichever_comes_first() -> None:
    """Else one of them would switch the other off."""
    tokenizer = TOKENIZERS["characters"]
    free = decoded([], tokenizer, tokens=TOKENS)
    assert free.stopped.any()
    ids = free.input_ids.tolist()
    strings = [text_of(tokenizer, ids[row][int(free.prompt_length[row]) + 1 :][:2]) for row in (0, 3)]
    stopped = decoded(strings, tokenizer, tokens=TOKENS)
    assert check_against_text(stopped, free, tokenizer, strings) >= 2
    assert stopped.stopped[free.stopped].all()


def test_the_prompt_ends_nothing() -> None:
    """Else a prompt that shows the stop string, or its beginning, would get an empty or a shorter response."""
    tokenizer = TOKENIZERS["characters"]
    free = decoded([], tokenizer)
    ids, first = free.input_ids.tolist(), free.prompt_length.tolist()
    inside = [text_of(tokenizer, ids[row][first[row] - 2 : first[row]]) for row in (2, 3, 4)]
    across = [text_of(tokenizer, ids[row][first[row] - 1 : first[row] + 1]) for row in (1, 2, 3, 4)]
    strings = inside + across
    assert check_against_text(decoded(strings, tokenizer), free, tokenizer, strings) == 0


def test_gaps_know_no_stop_string() -> None:
    """Else a text whose gap happens to hold one would come back with its other gaps unfilled."""
    tokenizer = TOKENIZERS["characters"]
    everything = tuple(str(tokenizer.decode([token])) for token in range(3, MASK))
    requests = fillings([[7, MASK, 9, MASK, 8, 8, MASK, MASK]], GenerationSettings(stop_strings=everything), MASK, 4)
    filled = Engine(student(), TOKENS, tokenizer=tokenizer).write(requests)
    assert filled.length.tolist() == [8]
    assert not filled.stopped.any()
    assert (filled.input_ids != MASK).all()
