"""Who answers: an AR model by transformers' `generate`, a block-diffusion model by the engine."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from opdlm.config import GenerationSettings
from opdlm.core.types import Rollout
from opdlm.evals.problem import Asked, Options, Plain
from opdlm.models.tokens import encode_prompt, encode_text


@dataclass(frozen=True, slots=True)
class Answer:
    """One response.

    Attributes:
        text: the response, decoded without special tokens.
        tokens: number of its tokens, up to and including the end-of-sequence token.
        forwards: model forwards in which its row took part.
        seconds: the row's share of the time, where the writer knows it.
        scores: where it was chosen from options: the log-likelihood of each, in nats.
    """

    text: str
    tokens: int
    forwards: int
    seconds: float | None = None
    scores: tuple[float, ...] = ()


class Writer(Protocol):
    """Writes a response to each prompt: (index of the prompt, response), as they are finished."""

    def __call__(self, prompts: list[Asked]) -> Iterable[tuple[int, Answer]]: ...


def encode(tokenizer: PreTrainedTokenizerBase, asked: Asked) -> list[int]:
    """Token ids of a prompt, of a text that is continued as it is, or of the text before options."""
    if isinstance(asked, Plain | Options):
        return encode_text(tokenizer, asked.text)
    return encode_prompt(tokenizer, asked)


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
"""The fields of GenerationSettings that both writers know; of the others `ar_writer` takes `max_new_tokens` alone."""


def ar_writer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings, *, batch_size: int
) -> Writer:
    """Answers of an autoregressive model, by the cached `generate` of transformers; greedy at temperature 0.

    Prompts are sorted by length, so that batches of `batch_size` rows need little padding (on the left). A row's
    tokens count up to and including the first stop token, and each took one forward: the first comes from the prompt's
    own pass. Rows that are done wait for the longest of their batch, and that time counts. Where it samples, one seed
    decides all draws, so that a response also depends on the batch.
    """
    stop_ids = _stop_ids(model, tokenizer)
    # Padding is masked out, so any token will do.
    pad_id = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else min(stop_ids, default=0)
    config = _generation_config(settings, stop_ids, pad_id)

    def write(prompts: list[Asked]) -> Iterator[tuple[int, Answer]]:
        encoded = [encode(tokenizer, prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            responses = _generate(model, [encoded[i] for i in batch], pad_id, config, settings.seed + first)
            for index, ids in zip(batch, responses, strict=True):
                ids = _up_to_stop(ids, stop_ids)
                yield index, Answer(_decode(tokenizer, ids), len(ids), len(ids))

    return write


def diffusion_writer(
    generate: Callable[[list[list[int]]], Iterable[tuple[int, Rollout]]], tokenizer: PreTrainedTokenizerBase
) -> Writer:
    """Answers of a block-diffusion model.

    Args:
        generate: writes a response to each prompt (token ids): (index of the prompt, rollout of one row), as they are
            finished. The pass over the prompt is not among a row's forwards, as `Rollout` has it.
        tokenizer: encodes the prompts, by its chat template where it has one, and decodes the responses.
    """

    def write(prompts: list[Asked]) -> Iterator[tuple[int, Answer]]:
        for index, row in generate([encode(tokenizer, prompt) for prompt in prompts]):
            begin, end = int(row.prompt_length[0]), int(row.length[0])
            text = _decode(tokenizer, row.input_ids[0, begin:end].tolist())
            yield index, Answer(text, end - begin, int(row.forwards[0]))

    return write


def _generation_config(settings: GenerationSettings, stop_ids: set[int], pad_id: int) -> GenerationConfig:
    """Neutral values, not None: what is None here would be filled in from the model's own generation settings."""
    sampled = settings.temperature > 0
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=sampled,
        num_beams=1,
        temperature=settings.temperature if sampled else 1.0,
        top_k=settings.top_k if sampled else 50,
        top_p=settings.top_p if sampled else 1.0,
        min_p=settings.min_p if sampled and settings.min_p else None,
        repetition_penalty=settings.repetition_penalty,
        use_cache=True,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad_id,
    )


def _generate(
    model: PreTrainedModel, prompts: list[list[int]], pad_id: int, config: GenerationConfig, seed: int
) -> list[list[int]]:
    """What the model writes behind each prompt, with whatever stands behind the stop token."""
    width = max(len(ids) for ids in prompts)
    input_ids = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in prompts])
    attention_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # transformers draws from torch's own generators
        torch.manual_seed(seed)
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
