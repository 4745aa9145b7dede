"""How likely the original finds what the converted model writes, and how often it would have written the same."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from opdlm.config import GenerationSettings, settings_from
from opdlm.core.layout import AUTOREGRESSIVE
from opdlm.data.prompts import Prompt
from opdlm.evals.bits import agreement, per_byte, per_token, read
from opdlm.evals.compare import check_decodings, check_ways, load_pair, usual_decodings
from opdlm.evals.original import original_of
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.models.tokens import encode_prompt, find_or_add_mask_token
from opdlm.records.evaluation import WrittenText
from opdlm.sampling.api import DiffusionLM, check_context
from opdlm.sampling.engine import Engine
from opdlm.sampling.requests import continuations

OnText = Callable[[WrittenText], None]
_ONE_BY_ONE = "sequential"


@dataclass(frozen=True)
class Likelihood:
    """One row: who wrote and how, and what the original says of it.

    Attributes:
        bits_per_byte, bits_per_token: under the original; lower is likelier.
        agreement: share of the tokens that are the original's own first choice behind the text before them.
        same_text: texts that are the original's own, character for character; None where tokens were drawn.
    """

    writer: str
    decoding: str
    bits_per_byte: float
    tokens_per_forward: float
    tokens: int
    bits_per_token: float = 0.0
    agreement: float = 0.0
    same_text: int | None = None


def evaluate_likelihood(
    model: str | Path,
    against: str | Path | None,
    texts: Sequence[Prompt],
    decodings: Sequence[str] = (),
    *,
    prompt_tokens: int | None = None,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    on_text: OnText = lambda text: None,
    **sampling: Any,
) -> list[Likelihood]:
    """Have a converted model and its original continue the same texts; errors as in `compare.evaluate`.

    Args:
        prompt_tokens: most tokens of a prompt, which is cut as `encode_prompt` says; default: all.
        on_text: called with each text, when the texts of its row are written.
        sampling: fields of GenerationSettings; `temperature` is 1 if not given.
    """
    settings = {"temperature": 1.0, **sampling, "max_new_tokens": max_new_tokens}
    check_decodings(decodings, **settings)
    against = original_of(model) if against is None else against
    student, ar_model = load_pair(model, against, device, dtype)
    prompts = [encode_prompt(student.tokenizer, text, prompt_tokens) for text in texts]
    check_context(prompts, max_new_tokens, student.model.max_length, student.model.geometry.block_size)
    return likelihoods(
        student,
        ar_model,
        prompts,
        decodings or usual_decodings(student.defaults.decoding, student.model.geometry),
        settings,
        batch_size=batch_size,
        on_text=on_text,
    )


def likelihoods(
    student: DiffusionLM,
    ar_model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    decodings: Sequence[str],
    settings: Mapping[str, Any],
    *,
    batch_size: int,
    on_text: OnText = lambda text: None,
) -> list[Likelihood]:
    """The original itself, the student before training (the original's weights in the student's geometry), the student.

    The student before training shows what the conversion taught; a lossless model has none. The original shows what can
    be reached: at temperature 1 its bits per byte are its own entropy. `settings`: of GenerationSettings, without the
    decoding.
    """
    check_ways(student, decodings)
    untrained = copy.deepcopy(ar_model)
    mask_token_id = find_or_add_mask_token(untrained, copy.deepcopy(student.tokenizer))
    original = BlockDiffusionModel(untrained, AUTOREGRESSIVE, mask_token_id)
    writers: list[tuple[str, BlockDiffusionModel, Sequence[str]]] = [("original", original, (_ONE_BY_ONE,))]
    if student.model.mask_token_id != NO_MASK:  # a lossless model was its original before
        before = BlockDiffusionModel(untrained, student.model.geometry, mask_token_id)
        writers.append(("student before", before, decodings))
    writers.append(("student", student.model, decodings))
    rows, own = [], []  # the original's texts
    for name, model, chosen in writers:
        for decoding in chosen:
            row, texts = _likelihood(
                name, model, student, ar_model, prompts, {**settings, "decoding": decoding}, batch_size, on_text
            )
            own = own or texts
            same = None if settings.get("temperature") else sum(map(str.__eq__, own, texts))
            rows.append(replace(row, same_text=same))
    return rows


def _likelihood(
    name: str,
    model: BlockDiffusionModel,
    student: DiffusionLM,
    ar_model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    batch_size: int,
    on_text: OnText,
) -> tuple[Likelihood, list[str]]:
    requests = continuations(prompts, settings_from(GenerationSettings, settings))
    rollout = Engine(model, student.tokens, batch_size).write(requests)
    ends = zip(rollout.prompt_length.tolist(), rollout.length.tolist(), rollout.stopped.tolist(), strict=True)
    # The stop token has no byte, so it is not scored.
    sequences = [
        (rollout.input_ids[row, : length - int(stopped)].tolist(), begin)
        for row, (begin, length, stopped) in enumerate(ends)
    ]
    texts = student.tokenizer.batch_decode([ids[begin:] for ids, begin in sequences], skip_special_tokens=True)
    lengths, forwards = (rollout.length - rollout.prompt_length).tolist(), rollout.forwards.tolist()
    asked = student.tokenizer.batch_decode([list(ids) for ids in prompts], skip_special_tokens=True)
    for number, (prompt, text) in enumerate(zip(asked, texts, strict=True)):
        on_text(
            WrittenText(
                name=name,
                decoding=settings["decoding"],
                number=number,
                prompt=prompt,
                response=text,
                tokens=lengths[number],
                forwards=forwards[number],
            )
        )
    tokens = sum(lengths)
    readings = read(ar_model, sequences)
    row = Likelihood(
        writer=name,
        decoding=settings["decoding"],
        bits_per_byte=per_byte(readings, texts),
        tokens_per_forward=tokens / sum(forwards),
        tokens=tokens,
        bits_per_token=per_token(readings),
        agreement=agreement(readings),
    )
    return row, texts
