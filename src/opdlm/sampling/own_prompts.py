"""Prompts that an AR model writes itself, for those who have none.

A chat model that sees its template up to where the user speaks goes on as a user does, so nothing else is needed to
hear what it knows to be asked (Magpie, arXiv 2406.08464). A model without a template begins texts of its own, and the
front of each is a prompt.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from opdlm.config import GenerationSettings, settings_from
from opdlm.errors import PromptsError, UsageError
from opdlm.models.tokens import encode_front, encode_prompt
from opdlm.sampling.api import DiffusionLM, load_autoregressive
from opdlm.sampling.requests import in_order

_PLACE = "What is it?"
"""Stands in the template for the message that is to be written: something that every template takes."""
_FRONT_TOKENS = (8, 48)
"""How much of a text is a prompt, where there is no template: at least and at most."""
_MOST_DRAWS = 20
"""Draws for each prompt that is wanted. A model that needs more writes no prompts."""


@dataclass(frozen=True)
class OwnPrompt:
    """A prompt, and the seed that it was drawn with: with all other settings alike, the same again."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class _Turn:
    """Where a prompt is written. Attributes: front: ids before it. stop_ids, stop_strings: any of them ends it."""

    front: list[int]
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()


def own_prompts(
    model: DiffusionLM,
    count: int,
    seed: int = 0,
    known: list[OwnPrompt] | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 0.95,
    batch_size: int = 32,
) -> Iterator[OwnPrompt]:
    """Prompts that an AR `model` (`load_autoregressive`) writes, until there are `count` different ones.

    They depend on the seed and on what is sampled, not on `batch_size`. A message that does not end within
    `max_new_tokens` is left out, so is an empty one.

    Args:
        known: of an earlier call with the same settings: they count, and what follows them is written.

    Raises:
        UsageError: `count` or `batch_size` is below 1. ConfigError: a value of the sampling that cannot be.
        PromptsError: the chat template is broken, or marks no end of a message; the tokenizer has neither a chat
            template nor a token that begins a text; or nearly all that the
            model writes is empty, cut off, or the same again.
    """
    if min(count, batch_size) < 1:
        raise UsageError("the number of prompts and the batch size must be at least 1; give larger ones")
    chat = bool(model.tokenizer.chat_template)
    turn = _user_turn(model) if chat else _Turn(_beginning(model))
    stops = tuple(dict.fromkeys([*model.tokens.stop_token_ids, *turn.stop_ids]))
    writer = DiffusionLM(model.model, model.tokenizer, model.defaults, replace(model.tokens, stop_token_ids=stops))
    sampling: dict[str, Any] = {"decoding": "sequential", "temperature": temperature, "top_p": top_p}
    sampling |= {"max_new_tokens": max_new_tokens if chat else _FRONT_TOKENS[1], "stop_strings": turn.stop_strings}
    settings = settings_from(GenerationSettings, sampling)
    found = {kept.prompt: kept for kept in known or ()}
    draw = max((kept.seed + 1 for kept in found.values()), default=seed)
    last = seed + _MOST_DRAWS * count
    while len(found) < count:
        if draw >= last:
            raise PromptsError(
                f"of {last - seed:,} tries only {len(found):,} gave a new prompt that ends; raise temperature or "
                "max_new_tokens, ask for fewer, or bring prompts of your own"
            )
        draws = range(draw, min(draw + count - len(found), last))
        for place, text in enumerate(in_order(_written(writer, turn, settings, draws, batch_size, cut=not chat))):
            if text and text not in found:
                found[text] = OwnPrompt(text, draws[place])
                yield found[text]
        draw = draws[-1] + 1


def write_prompts(
    model: str | Path,
    count: int,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    **sampling: Any,
) -> list[str]:
    """Prompts for `opdlm.convert`, written by the AR model itself: a folder, a .gguf file or a hub name.

    `sampling`: as in `own_prompts`, whose errors it raises.
    """
    writer = load_autoregressive(model, device, dtype, pack=True, trust_remote_code=trust_remote_code)
    return [found.prompt for found in own_prompts(writer, count, **sampling)]


def _written(
    writer: DiffusionLM, turn: _Turn, settings: GenerationSettings, draws: range, batch_size: int, cut: bool
) -> Iterator[tuple[int, str]]:
    """(index, what that draw gives), as they finish; "" where it is no prompt. `cut`: the front of each text."""
    requests = writer.requests([turn.front] * len(draws), settings, draws)
    for index, row in writer.engine(batch_size).finished(requests):
        ids = row.input_ids[0, int(row.prompt_length) : int(row.length)].tolist()
        if cut:
            ids = ids[: random.Random(draws[index]).randint(*_FRONT_TOKENS)]
        text = str(writer.tokenizer.decode(ids, skip_special_tokens=True))
        for stop in turn.stop_strings:
            text = text.partition(stop)[0]
        yield index, text.strip() if cut or bool(row.stopped) else ""


def _user_turn(model: DiffusionLM) -> _Turn:
    """The chat template up to where the user's first message begins, and what stands behind the message."""
    tokenizer, messages = model.tokenizer, [{"role": "user", "content": _PLACE}]
    encode_prompt(tokenizer, _PLACE)  # says what is wrong with a template that is broken
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    front, place, behind = whole.partition(_PLACE)
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    if not place or not behind.strip():
        raise PromptsError("the chat template marks no end of the user's message; bring prompts of your own")
    end = next((index for index in ids if str(tokenizer.decode([index])).strip()), ids[0])
    front_ids = list(tokenizer(front, add_special_tokens=False)["input_ids"]) or _beginning(model)
    if end in tokenizer.added_tokens_decoder:
        return _Turn(front_ids, stop_ids=(end,))
    return _Turn(front_ids, stop_strings=(behind.strip().split("\n")[0],))


def _beginning(model: DiffusionLM) -> list[int]:
    """What texts begin behind: BOS, or what ends the text before."""
    front = encode_front(model.tokenizer) or list(model.tokens.stop_token_ids[:1])
    if not front:
        raise PromptsError(
            "the tokenizer has neither a chat template nor a token that begins or ends a text, so the model cannot "
            "begin a prompt; bring prompts of your own"
        )
    return front
