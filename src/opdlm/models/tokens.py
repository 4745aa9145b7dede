"""Mask, pad and stop ids, and how a prompt becomes ids: in one place."""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlm.errors import ContextLengthError, MaskTokenError, PromptsError
from opdlm.models.parts import input_embedding, lm_head
from opdlm.models.tool_calls import with_arguments

MASK_TOKEN = "<|mask|>"
_MOST_UNTRAINED = 0.1
"""Share of tokens that a tokenizer may have beyond the model's: some publishers add a few that were never trained."""
_ANCHORS = ("\n", ".")


@dataclass(frozen=True)
class SpecialTokens:
    """The ids with a meaning of their own.

    Attributes:
        mask_token_id: stands for "not yet known".
        pad_token_id: fills rows; never read, so a model without one uses a stop token.
        stop_token_ids: any of them ends a text; the tokenizer's first. May be empty: then only the length cap ends it.
    """

    mask_token_id: int
    pad_token_id: int
    stop_token_ids: tuple[int, ...]


def special_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, needs_mask: bool = True
) -> SpecialTokens:
    """Reads them from the tokenizer and the model's generation config.

    `needs_mask`: MaskTokenError without a mask token; else the padding stands where nothing is known yet.
    """
    mask = _as_ids(tokenizer.mask_token_id) if needs_mask else ()
    if needs_mask and not mask:
        raise MaskTokenError("the tokenizer has no mask token; convert the model with `opdlm convert`, which adds one")
    generation = getattr(model, "generation_config", None)
    stops = _as_ids(tokenizer.eos_token_id) + _as_ids(getattr(generation, "eos_token_id", None))
    stops = tuple(dict.fromkeys(stops))
    pad = (_as_ids(tokenizer.pad_token_id) + stops + mask + (0,))[0]
    return SpecialTokens(mask[0] if mask else pad, pad, stops)


def _as_ids(value: Any) -> tuple[int, ...]:
    """transformers writes one id, a list of ids, or nothing (None)."""
    if value is None:
        return ()
    ids = tuple(value) if isinstance(value, list | tuple) else (value,)
    for index in ids:
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise MaskTokenError(
                f"{index!r:.40} is no token id; correct eos_token_id in generation_config.json and config.json"
            )
    return ids


def find_or_add_mask_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The mask token's id; afterwards the tokenizer knows it and the embedding has a row for it.

    Order: the tokenizer's own mask token; else "<|mask|>" as a new token. It takes the first row behind the vocabulary:
    an unused one where the embedding is padded, else one that is added. A new token starts as the mean of all used
    embeddings, in the input matrix and, if it has its own, in the output matrix.

    Raises:
        MaskTokenError: the id that the tokenizer gives to a new token is in use already, or the tokenizer is another
            model's.
    """
    rows = input_embedding(model).weight.shape[0]
    if len(tokenizer) > rows * (1 + _MOST_UNTRAINED) + 1:
        raise MaskTokenError(
            f"the tokenizer has {len(tokenizer):,} tokens, but the model has embeddings for {rows:,}: it is another "
            "model's; put the model's own tokenizer beside the weights"
        )
    known = _as_ids(tokenizer.mask_token_id)
    if known:
        if known[0] >= rows:
            _grow(model, rows, known[0] + 1)
        return known[0]
    taken = tokenizer.get_vocab()
    tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    (mask,) = _as_ids(tokenizer.mask_token_id)
    if MASK_TOKEN in taken:  # an ordinary token of the vocabulary before, and a trained one
        return mask
    if mask in taken.values():
        raise MaskTokenError(
            f"the vocabulary has gaps and the new mask token got the id {mask} of another token; "
            "give the tokenizer a mask_token of its own"
        )
    if mask >= rows:
        _grow(model, rows, mask + 1)
    else:
        _set_to_mean(model, slice(mask, mask + 1), used=mask)
    return mask


def _grow(model: PreTrainedModel, rows: int, wanted: int) -> None:
    """Adds embedding rows (and rows of the LM head), each the mean of the old ones."""
    model.resize_token_embeddings(wanted, mean_resizing=False)
    _set_to_mean(model, slice(rows, wanted), used=rows)


@torch.no_grad()
def _set_to_mean(model: PreTrainedModel, new: slice, used: int) -> None:
    """Fills the rows `new` of both matrices with the mean of their first `used` rows; for tied ones it is done once."""
    weights = [module.get_parameter("weight") for module in (input_embedding(model), lm_head(model))]
    for weight in {id(weight): weight for weight in weights}.values():
        weight[new] = weight[:used].float().mean(0).to(weight.dtype)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[dict[str, Any]],
    limit: int | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """A prompt as token ids, ready to be continued.

    Args:
        prompt: text, or chat messages with "role" and "content", which is text or a list of parts such as
            {"type": "text", "text": ...}, whose texts are joined. With a chat template, text is one user message;
            without one, it is tokenised as it is, with what the tokenizer puts before a text (BOS), nothing behind.
        limit: most tokens. A longer text loses its end, a longer chat the end of its last user message: the template
            and the other messages stay whole.
        tools: that the model may call, as the OpenAI API gives them. Messages may have `tool_calls`, also as there.

    Raises:
        PromptsError: the prompt is empty, not text alone, has messages or tools but the tokenizer no chat template, the
            template refuses it or knows no tools, or the limit leaves nothing of the message.
    """
    if not isinstance(prompt, str | list):
        raise PromptsError(f"a prompt is {type(prompt).__name__}; give text or a list of messages")
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise PromptsError("the prompt is empty; write some text")
    if isinstance(prompt, str):
        check_text(prompt)
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids = _apply_template(tokenizer, messages, tools)
        ids = _shortened(tokenizer, messages, limit, tools) if limit is not None and len(ids) > limit else ids
    elif tools:
        raise PromptsError("the tokenizer has no chat template, so the model knows no tools; leave them out")
    elif isinstance(prompt, str):
        ids = encode_text(tokenizer, prompt)[:limit]
    else:
        raise PromptsError("the tokenizer has no chat template; give prompts as plain text, not as messages")
    if not ids:
        raise PromptsError(f"the tokenizer makes no token of the prompt {prompt!r}; write another")
    return ids


def _shortened(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], limit: int, tools: Sequence[Mapping[str, Any]]
) -> list[int]:
    """The chat with as much of its last user message as fits: cut in the text, so that templates need not be known."""
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    last = users[-1] if users else len(messages) - 1
    content = _as_message(messages[last])["content"]

    def encoded(characters: int) -> list[int]:
        cut = {**messages[last], "content": content[:characters]}
        return _apply_template(tokenizer, [*messages[:last], cut, *messages[last + 1 :]], tools)

    kept = bisect_right(range(len(content) + 1), limit, key=lambda characters: len(encoded(characters))) - 1
    if kept < 0 or not content[:kept].strip():
        raise PromptsError(
            f"of the message {content[:40]!r} nothing is left in {limit} tokens: the chat template and the other "
            "messages fill them; raise --prompt-tokens"
        )
    return encoded(kept)


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[int]:
    messages = [_as_message(message) for message in messages]
    check_text(json.dumps([messages, tools], ensure_ascii=False, default=str))
    ids = _rendered(tokenizer, messages, tools)
    # A template that does not know them passes over them, and the model would never hear of them.
    unknown = "tools" if tools and ids == _rendered(tokenizer, messages, ()) else None
    if any(message.get("tool_calls") for message in messages) and "tool_calls" not in str(tokenizer.chat_template):
        unknown = "tool_calls in messages"
    if unknown:
        raise PromptsError(
            f"the chat template of this model knows no {unknown}; leave them out, or take a model that was trained to "
            "call tools"
        )
    return ids


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[int]:
    given: Any = list(tools) or None
    try:
        ids: Any = tokenizer.apply_chat_template(messages, tools=given, add_generation_prompt=True, return_dict=False)
    except TemplateSyntaxError as error:
        raise PromptsError(
            f"the chat template is broken (line {error.lineno}: {error.message}); correct chat_template.jinja, or "
            "chat_template in tokenizer_config.json"
        ) from error
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Templates are programs: they fail as programs do on messages that they do not expect.
        reason = " ".join(str(error).split())
        raise PromptsError(f"the chat template refuses the messages ({reason}); follow the roles it expects") from error
    return list(ids)


def _as_message(message: Any) -> dict[str, Any]:
    """A chat message whose content is one text, and whose tool calls are as templates take them."""
    if isinstance(message, dict) and message.get("tool_calls"):
        # What only calls tools says nothing, and clients write that in three ways.
        message = {
            **message,
            "content": message.get("content") or "",
            "tool_calls": with_arguments(message["tool_calls"]),
        }
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        found = sorted(map(str, message)) if isinstance(message, dict) else repr(message)[:40]
        raise PromptsError(f"a chat message needs 'role' and 'content', this one has {found}; add them")
    content = message["content"]
    parts = content if isinstance(content, list) else [content]
    return {**message, "role": check_text(message["role"]), "content": "".join(map(_text_of, parts))}


def _text_of(part: Any) -> str:
    """Of a message's content, or of one of its parts."""
    if isinstance(part, dict) and part.get("type", "text") == "text" and "text" in part:
        part = part["text"]
    if isinstance(part, dict):
        raise PromptsError(
            f"a chat message has a part of type {part.get('type')!r}, and the model reads text alone; leave it out"
        )
    return check_text(part)


def check_text(text: Any) -> str:
    """The same; PromptsError if it is no text, or has what no text can have: half of a surrogate pair."""
    if not isinstance(text, str):
        raise PromptsError(f"a chat message has {repr(text)[:40]} where text is due; put it in quotes or leave it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptsError(
            f"character {error.start} of the text is half of a surrogate pair, half a character; correct its encoding"
        ) from error
    return text


def check_beginning(tokenizer: PreTrainedTokenizerBase, text: Any, context: int | None) -> None:
    """Raises ContextLengthError for a text whose beginning alone has twice the tokens of the context.

    To encode all of a text of 4 MB takes seconds and a gigabyte. Where the beginning is cut, tokens may be others than
    in the whole text, hence twice. What is no text is another's matter.
    """
    if context is None or not isinstance(text, str) or len(text) <= (length := 16 * context):
        return
    begin = check_text(text[:length].strip())
    if len(tokenizer(begin, add_special_tokens=False)["input_ids"]) > 2 * context:
        raise ContextLengthError(
            f"the first {length} of {len(text)} characters do not fit into the model's context of {context} tokens; "
            "shorten the text"
        )


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text as it is, with what the tokenizer puts before one (BOS), and nothing behind.

    PromptsError: as `check_text`.
    """
    check_text(text)
    return [*encode_front(tokenizer, text), *tokenizer(text, add_special_tokens=False)["input_ids"]]


def encode_front(tokenizer: PreTrainedTokenizerBase, text: str = "a") -> list[int]:
    """What the tokenizer puts before a text: BOS, or nothing. Nothing could follow what it puts behind (EOS)."""
    ids, bare = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = next((i for i in range(len(ids)) if ids[i : i + len(bare)] == bare), 0)
    return ids[:begin]


def encode_inside(tokenizer: PreTrainedTokenizerBase, mask_token_id: int, text: str) -> list[int]:
    """Token ids of part of a text, which are to say the same as `text` in the middle of others.

    Some tokenizers put a space before whatever they encode (the older ones of SentencePiece): then the ids behind an
    anchor that keeps it away.
    """
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    if decode_inside(tokenizer, mask_token_id, plain) == text:
        return plain
    for anchor in _ANCHORS:
        front, ids = (tokenizer(whole, add_special_tokens=False)["input_ids"] for whole in (anchor, anchor + text))
        if ids[: len(front)] == front and decode_inside(tokenizer, mask_token_id, ids[len(front) :]) == text:
            return ids[len(front) :]
    return plain


def decode_inside(tokenizer: PreTrainedTokenizerBase, mask_token_id: int, ids: Sequence[int]) -> str:
    """Part of a text. Some tokenizers drop the space before a text's first word: a mask token goes before it."""
    front = str(tokenizer.decode([mask_token_id]))
    whole = str(tokenizer.decode([mask_token_id, *ids], clean_up_tokenization_spaces=False))
    return whole.removeprefix(front)
