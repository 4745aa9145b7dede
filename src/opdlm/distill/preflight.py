"""What can be known before a training: can a mask adapt the model, what does it cost, how fast is it, what to type."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlm.checkpoints.load import load_ar_config, load_ar_model
from opdlm.checkpoints.source import count_parameters
from opdlm.config import DistillSettings, settings_from
from opdlm.core.types import Geometry
from opdlm.data.prompts import check_lengths
from opdlm.distill import footprint
from opdlm.distill.speed import measure
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.devices import free_bytes, pick_device
from opdlm.models.identity import identity_check
from opdlm.models.parts import input_embedding
from opdlm.models.tokens import SpecialTokens, encode_prompt, find_or_add_mask_token, special_tokens
from opdlm.recipes import load_recipe, recipe_for

Findings = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is to be found out.

    Attributes:
        model: folder or hub name of the AR model.
        changes: settings in place of the recipe's.
        lora_rank: of the estimate with an adapter.
        prompt_tokens, response_tokens: lengths that memory is estimated for; None: the recipe's longest response.
        device: "cpu", "cuda", "mps" or "auto".
        speed: whether some training steps are timed.
    """

    model: str
    changes: dict[str, str]
    lora_rank: int = 32
    prompt_tokens: int = 256
    response_tokens: int | None = None
    device: str = "auto"
    speed: bool = True


def examine(question: Question) -> Iterator[Findings]:
    """The findings, a part at a time, the quick ones first. Raises the error that a conversion would raise."""
    device = pick_device(question.device)
    parameters = count_parameters(load_ar_config(question.model))
    recipe = recipe_for(parameters)
    settings = settings_from(DistillSettings, {**load_recipe(recipe), **question.changes})
    yield {"model": question.model, "convertible": True, "parameters": parameters, "recipe": recipe}

    ar_model, tokenizer = load_ar_model(question.model, device=device)
    vocabulary, mask = len(tokenizer), _plan_mask(ar_model, tokenizer)
    geometry = Geometry(settings.block_size, settings.prediction, settings.context)
    model = BlockDiffusionModel(ar_model, geometry, mask["id"])
    context = model.max_length
    shape = shape_of(question, settings, context)
    check_lengths([[0] * min(shape.prompt_tokens, 16)], settings.block_size, context, settings.block_size)
    tokens = special_tokens(ar_model, tokenizer)
    yield {
        "architecture": type(ar_model).__name__,
        "vocabulary": vocabulary,
        "context": context,
        "mask_token": mask,
        "end_tokens": tokenizer.convert_ids_to_tokens(list(tokens.stop_token_ids)),
        "chat_template": bool(tokenizer.chat_template),
    }
    encode_prompt(tokenizer, "Hello")  # a broken chat template is an error here, as in a conversion
    yield {"identity_difference": identity_check(model), "mask_honoured": True}  # part of the identity check

    memory = footprint.estimate(model, tokens, settings, question.lora_rank, shape)
    free = free_bytes(device)
    fits = free is None or memory["training_bytes"] <= free
    yield {"memory": memory, "device": str(device), "free_bytes": free, "training_fits": fits}
    saving = {} if fits or free is None else _what_fits(model, tokens, settings, question.lora_rank, shape, free)
    longest = settings.response_length.end
    yield {"command": command(question, context, longest, saving or {}), "command_fits": saving is not None}
    yield {"speed": measure(model, tokens, settings) if question.speed and fits else None}


def _what_fits(
    model: BlockDiffusionModel,
    tokens: SpecialTokens,
    settings: DistillSettings,
    rank: int,
    shape: footprint.Shape,
    free: int,
) -> dict[str, str] | None:
    """The first way to save memory that is enough: smaller micro-batches, recomputed activations, an adapter."""
    single = replace(shape, rows=1)
    recomputing = settings.model_copy(update={"gradient_checkpointing": True})
    plain = footprint.estimate(model, tokens, settings, rank, single)
    tight = footprint.estimate(model, tokens, recomputing, rank, single)
    micro, less = {"--rows-per-micro-batch": "1"}, {"--rows-per-micro-batch": "1", "--gradient-checkpointing": ""}
    ways = (
        (plain["training_bytes"], micro),
        (tight["training_bytes"], less),
        (plain["lora_bytes"], micro | {"--lora-rank": str(rank)}),
        (tight["lora_bytes"], less | {"--lora-rank": str(rank)}),
    )
    return next((flags for needed, flags in ways if needed <= free), None)


def shape_of(question: Question, settings: DistillSettings, context: int | None) -> footprint.Shape:
    """The lengths asked for, within the context."""
    longest = question.response_tokens or settings.response_length.end
    if context is not None:
        longest = min(longest, max(settings.block_size, context - question.prompt_tokens - settings.block_size))
    rows = settings.rows_per_micro_batch or settings.rows_per_update
    return footprint.Shape(rows, question.prompt_tokens, longest, settings.rollout_batch)


def _plan_mask(ar_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Which row becomes the mask token's, and whether it was there."""
    known, rows = tokenizer.mask_token is not None, input_embedding(ar_model).weight.shape[0]
    index = find_or_add_mask_token(ar_model, tokenizer)
    grown = input_embedding(ar_model).weight.shape[0] - rows
    plan = (
        f"the embedding grows by {grown} row{'s' if grown > 1 else ''}" if grown else "an unused row of the embedding"
    )
    return {"id": index, "token": str(tokenizer.mask_token), "plan": "the tokenizer's own" if known else plan}


def command(question: Question, context: int | None, longest: int, saving: dict[str, str]) -> str:
    """What to type, with the flags that make it fit."""
    parts = ["opdlm", "convert", question.model, "--prompts", "PROMPTS.jsonl", "--output", "RUN"]
    for name, value in question.changes.items():
        parts += ["--" + name.replace("_", "-"), value]
    if context is not None and context < 2 * longest:
        parts += ["--response-length.start", str(min(100, context // 2)), "--response-length.end", str(context // 2)]
    for flag, value in saving.items():
        parts += [flag, value] if value else [flag]
    if question.device != "auto":
        parts += ["--device", question.device]
    return shlex.join(parts)
