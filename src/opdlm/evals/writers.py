"""Who answers: an AR model by transformers' `generate`, a block-diffusion model by the engine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from opdlm.core.types import Rollout
from opdlm.models.tokens import encode_prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """One response.

    Attributes:
        text: the response, decoded without special tokens.
        tokens: number of its tokens, up to and including the end-of-sequence token.
        forwards: model forwards in which its row took part.
        seconds: the row's share of the time, where the writer knows it.
    """

    text: str
    tokens: int
    forwards: int
    seconds: float | None = None


class Writer(Protocol):
    """Writes a response to each prompt (a user's message, plain text), in the order of the prompts."""

    def __call__(self, prompts: list[str]) -> list[Answer]: ...


def ar_writer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int, batch_size: int
) -> Writer:
    """Greedy answers of an autoregressive model, by the cached `generate` of transformers.

    Prompts are sorted by length, so that batches of `batch_size` rows need little padding (on the left). A row's
    tokens count up to and including the first stop token, and each took one forward: the first comes from the prompt's
    own pass. Rows that are done wait for the longest of their batch, and that time counts.
    """
    stop_ids = _stop_ids(model, tokenizer)
    # Padding is masked out, so any token will do.
    pad_id = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else min(stop_ids, default=0)
    # Neutral values, not None: what is None here would be filled in from the model's own generation settings.
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        use_cache=True,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad_id,
    )

    def write(prompts: list[str]) -> list[Answer]:
        encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
        written: dict[int, Answer] = {}
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            responses = _generate(model, [encoded[index] for index in batch], pad_id, greedy)
            for index, ids in zip(batch, responses, strict=True):
                ids = _up_to_stop(ids, stop_ids)
                written[index] = Answer(_decode(tokenizer, ids), len(ids), len(ids))
        return [written[index] for index in range(len(prompts))]

    return write


def diffusion_writer(generate: Callable[[list[list[int]]], Rollout], tokenizer: PreTrainedTokenizerBase) -> Writer:
    """Answers of a block-diffusion model.

    Args:
        generate: writes a response to each prompt (token ids), row i of the rollout for prompt i. The pass over the
            prompt is not among a row's forwards, as `Rollout` has it.
        tokenizer: encodes the prompts, by its chat template where it has one, and decodes the responses.
    """

    def write(prompts: list[str]) -> list[Answer]:
        rollout = generate([encode_prompt(tokenizer, prompt) for prompt in prompts]).to("cpu")
        begins, ends = rollout.prompt_length.tolist(), rollout.length.tolist()
        return [
            Answer(_decode(tokenizer, ids[begin:end]), end - begin, forwards)
            for ids, begin, end, forwards in zip(
                rollout.input_ids.tolist(), begins, ends, rollout.forwards.tolist(), strict=True
            )
        ]

    return write


def _generate(
    model: PreTrainedModel, prompts: list[list[int]], pad_id: int, config: GenerationConfig
) -> list[list[int]]:
    """What the model writes behind each prompt, with whatever stands behind the stop token."""
    width = max(len(ids) for ids in prompts)
    input_ids = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in prompts])
    attention_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    output = cast(Any, model).generate(
        input_ids.to(model.device), attention_mask=attention_mask.to(model.device), generation_config=config
    )
    return output[:, width:].tolist()


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a response. A chat model often stops at others than its tokenizer's one."""
    config = model.generation_config
    listed = config.eos_token_id if config is not None else None
    found = set(listed) if isinstance(listed, list) else {listed}
    return {token for token in (*found, tokenizer.eos_token_id) if isinstance(token, int)}


def _up_to_stop(ids: list[int], stop_ids: set[int]) -> list[int]:
    for count, token in enumerate(ids, start=1):
        if token in stop_ids:
            return ids[:count]
    return ids


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return cast(str, tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
