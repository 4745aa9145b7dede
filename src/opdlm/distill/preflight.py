"""What can be known before a training: can a mask adapt the model, what does it cost, how fast is it, what to type."""

import shlex
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlm.checkpoints.load import load_ar_config, load_ar_model, weights_note
from opdlm.checkpoints.source import count_parameters
from opdlm.config import ConvertSettings, DistillSettings, settings_from
from opdlm.core.types import Geometry
from opdlm.data.prompts import Prompt
from opdlm.distill import footprint
from opdlm.distill.prepare import check_device, check_fit, encoded, read_texts
from opdlm.distill.speed import measure
from opdlm.models.adapter import check_rank, largest_rank
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.devices import free_bytes, pick_device
from opdlm.models.identity import identity_check
from opdlm.models.parts import input_embedding
from opdlm.models.tokens import SpecialTokens, find_or_add_mask_token, special_tokens
from opdlm.recipes import recipe_for, with_recipe

Findings = dict[str, Any]
_RANK, PROMPT_TOKENS = 32, 256


@dataclass(frozen=True)
class Question:
    """What is to be found out.

    Attributes:
        model: folder or hub name of the AR model.
        changes: settings in place of the recipe's; with prompts among them these are checked as by a conversion.
        lora_rank: of the estimate with an adapter; None: _RANK, or the model's largest.
        prompt_tokens, response_tokens: lengths that memory is estimated for; None: the longest prompt, or
            PROMPT_TOKENS without any, and the recipe's longest response.
        device: "cpu", "cuda", "mps" or "auto".
        speed: whether some training steps are timed.
    """

    model: str
    changes: dict[str, str]
    lora_rank: int | None = None
    prompt_tokens: int | None = None
    response_tokens: int | None = None
    device: str = "auto"
    speed: bool = True


def examine(question: Question) -> Iterator[Findings]:
    """The findings, a part at a time, the quick ones first. Raises the error that a conversion would raise."""
    recipe = recipe_for(count_parameters(load_ar_config(question.model)))
    settings = settings_from(ConvertSettings, with_recipe(recipe, question.changes))
    opening = yield from opened(question, recipe, settings, _RANK)
    ar_model, tokenizer, rank, device = opening.ar_model, opening.tokenizer, opening.rank, opening.device
    vocabulary, mask = len(tokenizer), _plan_mask(ar_model, tokenizer)
    model = BlockDiffusionModel(
        ar_model, Geometry(settings.block_size, settings.prediction, settings.context), mask["id"]
    )
    context, tokens = model.max_length, special_tokens(ar_model, tokenizer)
    yield described(opening, context, tokens) | {"vocabulary": vocabulary, "mask_token": mask}
    advised = within_context(settings, context)
    longest = yield from fitted(opening, model, settings, advised)
    yield {"identity_difference": identity_check(model), "mask_honoured": True}  # part of the identity check

    shape = shape_of(question, settings, longest, context)
    memory = footprint.estimate(model, tokens, settings, rank, shape)
    free = free_bytes(device)
    fits = free is None or memory["training_bytes"] <= free
    ways = list(_ways(model, tokens, settings, rank, shape))
    told = [{"flags": flags, "bytes": needed, "fits": free is None or needed <= free} for flags, needed in ways]
    yield {"memory": memory, "ways": told, "device": str(device), "free_bytes": free, "training_fits": fits}
    saving = {} if fits or free is None else next((flags for flags, needed in ways if needed <= free), None)
    yield {"command": command(question, settings, advised, saving or {}), "command_fits": saving is not None}
    yield {"speed": measure(model, tokens, settings) if question.speed and fits else None}


@dataclass(frozen=True)
class Opening:
    """What is to be converted, and the prompts' texts, if any were given."""

    ar_model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    texts: Sequence[Prompt]
    rank: int


def opened(
    question: Question, recipe: str, settings: ConvertSettings, usual_rank: int
) -> Generator[Findings, None, Opening]:
    """Loads model and prompts; says what they are."""
    device = pick_device(question.device)
    check_device(settings, device)
    parameters = count_parameters(load_ar_config(question.model))
    yield {"model": question.model, "convertible": True, "parameters": parameters, "recipe": recipe}
    if note := weights_note(question.model):
        yield {"weights": note}
    taken: list[str] = []
    texts = read_texts(settings, None, taken.append) if settings.prompts else []
    if taken:
        yield {"prompts": taken[0].partition(": ")[2]}
    ar_model, tokenizer = load_ar_model(question.model, device=device)
    if question.lora_rank is not None:
        check_rank(ar_model, question.lora_rank)
    rank = question.lora_rank or min(usual_rank, largest_rank(ar_model))
    return Opening(ar_model, tokenizer, device, texts, rank)


def described(opening: Opening, context: int | None, tokens: SpecialTokens) -> Findings:
    """The model and its tokenizer."""
    ends = opening.tokenizer.convert_ids_to_tokens(list(tokens.stop_token_ids))
    named = [
        f"{number}, no token" if end is None else end for end, number in zip(ends, tokens.stop_token_ids, strict=True)
    ]
    return {
        "architecture": type(opening.ar_model).__name__,
        "vocabulary": len(opening.tokenizer),
        "context": context,
        "end_tokens": named,
        "chat_template": bool(opening.tokenizer.chat_template),
    }


def fitted(
    opening: Opening, model: BlockDiffusionModel, settings: ConvertSettings, advised: ConvertSettings
) -> Generator[Findings, None, int]:
    """Checks that the prompts fit with their responses; returns the longest, or PROMPT_TOKENS where there are none."""
    # A broken chat template is an error without prompts too.
    ids = encoded(opening.texts or ["Hello"], opening.tokenizer, settings)
    check_fit(model, ids, advised)
    if not opening.texts:
        return PROMPT_TOKENS
    longest = max(map(len, ids))
    yield {"longest_prompt": longest}
    return longest


def _ways(
    model: BlockDiffusionModel, tokens: SpecialTokens, settings: DistillSettings, rank: int, shape: footprint.Shape
) -> Iterator[tuple[dict[str, str], int]]:
    """(flags, bytes) of ways to save memory, from what costs least to what changes most."""
    single = replace(shape, rows=1)
    recomputing = settings.model_copy(update={"gradient_checkpointing": True})
    growth = footprint.growth_of(model, tokens, recomputing)

    def estimate(of: DistillSettings) -> dict[str, Any]:
        return footprint.estimate(model, tokens, of, rank, single, growth)

    plain, tight = footprint.estimate(model, tokens, settings, rank, single), estimate(recomputing)
    micro = {"--rows-per-micro-batch": "1"}
    less = micro | {"--gradient-checkpointing": ""}
    yield micro, plain["training_bytes"]
    yield less, tight["training_bytes"]
    reduced, flags = recomputing, less
    if not settings.optimiser.l2_sp:  # its originals are the teacher's weights, in float32
        reduced = recomputing.model_copy(update={"teacher_precision": "bfloat16"})
        flags = less | {"--teacher-precision": "bfloat16"}
        yield flags, estimate(reduced)["training_bytes"]
    for moments in ("8bit", "offload") if model.device.type == "cuda" else ("8bit",):
        optimiser = settings.optimiser.model_copy(update={"moments": moments})
        small = reduced.model_copy(update={"optimiser": optimiser})
        yield flags | {"--optimiser.moments": moments}, estimate(small)["training_bytes"]
    yield micro | {"--lora-rank": str(rank)}, plain["lora_bytes"]
    yield less | {"--lora-rank": str(rank)}, tight["lora_bytes"]


def within_context(settings: ConvertSettings, context: int | None) -> ConvertSettings:
    """With responses of half the context at most, where the recipe's are longer."""
    ramp = settings.response_length
    if context is None or context >= 2 * ramp.end:
        return settings
    half = max(1, context // 2)
    shorter = ramp.model_copy(update={"start": min(ramp.start, half), "end": half})
    return settings.model_copy(update={"response_length": shorter})


def shape_of(question: Question, settings: DistillSettings, usual: int, context: int | None) -> footprint.Shape:
    """The lengths asked for, within the context."""
    prompt = question.prompt_tokens or usual
    longest = question.response_tokens or settings.response_length.end
    if context is not None:
        longest = min(longest, max(settings.block_size, context - prompt - settings.block_size))
    rows = settings.rows_per_micro_batch or settings.rows_per_update
    return footprint.Shape(rows, prompt, longest, settings.rollout_batch)


def _plan_mask(ar_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Which row becomes the mask token's, and whether it was there."""
    known, rows = tokenizer.mask_token is not None, input_embedding(ar_model).weight.shape[0]
    index = find_or_add_mask_token(ar_model, tokenizer)
    grown = input_embedding(ar_model).weight.shape[0] - rows
    plan = (
        f"the embedding grows by {grown} row{'s' if grown > 1 else ''}" if grown else "an unused row of the embedding"
    )
    return {"id": index, "token": str(tokenizer.mask_token), "plan": "the tokenizer's own" if known else plan}


def command(question: Question, settings: ConvertSettings, advised: ConvertSettings, saving: dict[str, str]) -> str:
    """What to type, with the flags that make it fit."""
    parts = ["opdlm", "convert", question.model, "--prompts", settings.prompts or "PROMPTS.jsonl", "--output", "RUN"]
    for name, value in question.changes.items():
        if name != "prompts":
            parts += ["--" + name.replace("_", "-"), value]
    if advised is not settings:
        ramp = advised.response_length
        parts += ["--response-length.start", str(ramp.start), "--response-length.end", str(ramp.end)]
    for flag, value in saving.items():
        parts += [flag, value] if value else [flag]
    if question.device != "auto":
        parts += ["--device", question.device]
    return shlex.join(parts)
