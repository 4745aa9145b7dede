"""A plan for a named model: its config, the recipe, the ways to make it fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from opdlm.checkpoints.load import load_ar_config
from opdlm.config import ConvertSettings, settings_from
from opdlm.core.types import Geometry
from opdlm.distill import plan
from opdlm.distill.footprint import Growth, growth_of
from opdlm.distill.gpu_kinds import KINDS
from opdlm.errors import UsageError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.shapes import NAMED_SHAPES, named_shape, without_weights
from opdlm.models.tokens import SpecialTokens
from opdlm.recipes import LARGE_FROM, load_recipe

_FEW = 8  # rows decoded at once, where their cache is what takes most


@dataclass(frozen=True)
class Wanted:
    """What is asked of a plan; None: the usual value.

    Attributes:
        model: folder with a config.json, hub name, or one of NAMED_SHAPES. kind: one of KINDS.
        prompts, prompt_tokens, response_tokens, tokens_per_forward: as in `plan.Job`.
        mfu, forward_ms: in place of what `plan.Assumed` assumes. files: results of benchmarks/gpu.py.
    """

    model: str
    gpus: int = 8
    kind: str = "h100"
    recipe: str | None = None
    prompts: int | None = None
    prompt_tokens: int | None = None
    response_tokens: int | None = None
    tokens_per_forward: float | None = None
    mfu: float | None = None
    forward_ms: float | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Subject:
    """A model without weights, its recipe, and what its passes keep, plain and with recomputed activations."""

    recipe: str
    settings: ConvertSettings
    model: BlockDiffusionModel
    plain: Growth
    tight: Growth


@lru_cache(maxsize=1)  # plans of one model for several numbers of GPUs differ in nothing of this
def _subject(name: str, recipe: str | None) -> _Subject:
    config = named_shape(name) or load_ar_config(name)
    decoder = without_weights(config)
    parameters = sum(p.numel() for p in decoder.parameters())
    recipe = recipe or ("paper-small" if parameters < LARGE_FROM else "paper-large")
    settings = settings_from(ConvertSettings, load_recipe(recipe))
    if settings.method == "lossless":
        raise UsageError("a plan is for conversions that train the student; choose another recipe")
    geometry = Geometry(settings.block_size, settings.prediction, settings.context)
    model = BlockDiffusionModel(decoder, geometry, int(config.vocab_size or 1) - 1)
    tokens = SpecialTokens(model.mask_token_id, 0, ())
    ways = (settings.model_copy(update={"gradient_checkpointing": tight}) for tight in (False, True))
    plain, tight = (growth_of(model, tokens, way, "cuda") for way in ways)
    return _Subject(recipe, settings, model, plain, tight)


def planned(wanted: Wanted) -> dict[str, Any]:
    """The plan. Raises UsageError for a kind that is not known, else as `load_ar_config` and `load_recipe`."""
    if wanted.kind not in KINDS:
        raise UsageError(f"there is no GPU {wanted.kind!r} in the table; choose one of {', '.join(KINDS)}")
    subject = _subject(wanted.model, wanted.recipe)
    recipe, settings, model = subject.recipe, subject.settings, subject.model
    parameters = sum(p.numel() for p in model.model.parameters())
    if (wanted.tokens_per_forward or 1) > settings.block_size:
        raise UsageError(f"no forward writes more than a block; give at most {settings.block_size} tokens per forward")
    usual = plan.Job()
    job = plan.Job(
        prompts=wanted.prompts or usual.prompts,
        prompt_tokens=wanted.prompt_tokens or usual.prompt_tokens,
        response_tokens=wanted.response_tokens or plan.paper_response_tokens(parameters),
        tokens_per_forward=wanted.tokens_per_forward or usual.tokens_per_forward,
    )
    assumed = plan.Assumed()
    assumed = replace(
        assumed,
        mfu=wanted.mfu or assumed.mfu,
        forward_s=wanted.forward_ms / 1000 if wanted.forward_ms else assumed.forward_s,
    )
    kind = KINDS[wanted.kind]
    rates = plan.rates_of(kind, assumed, wanted.gpus, wanted.files)
    growth = subject.tight if settings.gradient_checkpointing else subject.plain
    found = plan.plan(model, settings, job, kind, rates, wanted.gpus, growth)
    ways = [{"name": name, "bytes": needed, "fits": plan.fits(needed, kind)} for name, needed in _ways(subject, job)]
    named = {"model": wanted.model, "recipe": recipe, "kind": wanted.kind, "named": wanted.model in NAMED_SHAPES}
    return {**named, **found, "ways": ways}


def _ways(subject: _Subject, job: plan.Job) -> Iterator[tuple[str, float]]:
    """(name, bytes) of ways to train on one GPU, each with what saves memory in those before it."""
    settings, model = subject.settings, subject.model
    single = settings.model_copy(update={"rows_per_micro_batch": 1, "gradient_checkpointing": False})
    yield "a row at a time", plan.memory(model, single, job, 1, subject.plain)["replicated"]
    tight = single.model_copy(update={"gradient_checkpointing": True})
    found = plan.memory(model, tight, job, 1, subject.tight)
    yield "and gradient checkpointing", found["replicated"]
    if settings.rollout_batch > _FEW:
        tight = tight.model_copy(update={"rollout_batch": _FEW})
        found = plan.memory(model, tight, job, 1, subject.tight)
        yield f"and {_FEW} rows decoded at once", found["replicated"]
    if settings.lora_rank is not None:
        return
    if not settings.optimiser.l2_sp:  # its originals are the teacher's weights, in float32
        tight = tight.model_copy(update={"teacher_precision": "bfloat16"})
        yield "and the teacher in bfloat16", plan.memory(model, tight, job, 1, subject.tight)["replicated"]
    for moments, name in (("8bit", "and moments in 8 bits"), ("offload", "or moments in the CPU's memory")):
        optimiser = settings.optimiser.model_copy(update={"moments": moments})
        small = tight.model_copy(update={"optimiser": optimiser})
        yield name, plan.memory(model, small, job, 1, subject.tight)["replicated"]
    yield "LoRA of rank 32, with gradient checkpointing", found["parts"]["lora"]
