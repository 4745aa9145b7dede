"""`convert`: an AR model and prompts in, a run's folder with a block-diffusion model out."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from opdlm.checkpoints.load import count_parameters, load_ar_model, load_config
from opdlm.checkpoints.save import save_checkpoint
from opdlm.config import ConvertSettings, GenerationSettings, LengthRamp, settings_from
from opdlm.core.schedules import response_length
from opdlm.core.types import Geometry
from opdlm.data.files import HubPart
from opdlm.data.prompts import Prompt, as_prompt, check_lengths, load_prompts, load_responses
from opdlm.distill import adapter
from opdlm.distill.loop import Evaluate, OnStep, Trainer
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from opdlm.errors import PromptsError, UsageError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.devices import pick_device
from opdlm.models.identity import identity_check
from opdlm.models.tokens import SpecialTokens, encode_prompt, find_or_add_mask_token, special_tokens
from opdlm.models.verdict import check_convertible
from opdlm.recipes import load_recipe, recipe_for
from opdlm.records.run_folder import RunFolder

OnStart = Callable[[Trainer, float], None]
OnNote = Callable[[str], None]
"""Called with a line that says what was found, such as which column the prompts were taken from."""


def convert(
    model: str | Path,
    prompts: str | Sequence[Prompt] = "",
    output: str | Path = "",
    *,
    on_start: OnStart = lambda trainer, difference: None,
    on_step: OnStep = lambda metrics: None,
    evaluate: Evaluate | None = None,
    **settings: Any,
) -> Path:
    """Turn the autoregressive `model` into a block-diffusion model by on-policy distillation.

    Args:
        model: folder or hub name of the AR model.
        prompts: file, hub data set, or a list of strings and conversations.
        output: folder of the run, new or empty. The result is its sub-folder `model`.
        on_start: called with the trainer and the identity check's largest difference before the first rollout.
        on_step: called with the metrics of each rollout. evaluate: called with the student at each checkpoint.
        settings: fields of `opdlm.config.ConvertSettings`; `recipe` names their defaults; else the model's size does.

    Returns:
        The folder of the converted model.

    Raises:
        OpdlmError: anything that the user can mend; nothing is left half-written.
    """
    given = prompts if isinstance(prompts, str) else ""
    chosen = resolve(model=str(model), prompts=given, output=str(output), **settings)
    return run(chosen, prompts if given == "" else None, on_start=on_start, on_step=on_step, evaluate=evaluate)


def resume(
    output: str | Path,
    *,
    on_start: OnStart = lambda trainer, difference: None,
    on_step: OnStep = lambda metrics: None,
    on_note: OnNote = lambda text: None,
    evaluate: Evaluate | None = None,
) -> Path:
    """Continue a run from its newest checkpoint with the settings in its config.toml; ends as if never interrupted."""
    folder = RunFolder.open(Path(output))
    settings = folder.settings()
    return run(settings, resuming=folder, on_start=on_start, on_step=on_step, on_note=on_note, evaluate=evaluate)


def resolve(**settings: Any) -> ConvertSettings:
    """Settings with the recipe's values as defaults; where no recipe is named, that for models of this size.

    Raises:
        ConfigError: a key is unknown or a value out of range.
        ModelNotFoundError, UnsupportedModelError: there is no such model, or none that can be converted.
    """
    if settings.get("recipe") is None and settings.get("model"):
        settings["recipe"] = _recipe_by_size(settings["model"], settings.get("lora_rank") is not None)
    defaults = load_recipe(settings["recipe"]) if settings.get("recipe") else {}
    # A group that is given in part keeps the recipe's other values: `response_length={"end": 512}`.
    merged = {
        name: {**defaults[name], **value}
        for name, value in settings.items()
        if isinstance(value, Mapping) and "kind" not in value and isinstance(defaults.get(name), Mapping)
    }
    given_ramp = settings.get("response_length")
    if isinstance(given_ramp, Mapping) and "start" not in given_ramp and str(given_ramp.get("end", "")).isdigit():
        ramp = {**LengthRamp().model_dump(), **merged.get("response_length", given_ramp)}
        merged["response_length"] = {**ramp, "start": min(ramp["start"], int(ramp["end"]))}  # the end alone is enough
    return settings_from(ConvertSettings, {**defaults, **settings, **merged})


def _recipe_by_size(model: str, adapter_only: bool) -> str:
    """Adapters never get `small`: its L2-SP needs original weights, which an adapter lacks."""
    config = load_config(model)
    check_convertible(config)
    recipe = recipe_for(count_parameters(config))
    return "standard" if adapter_only and recipe == "small" else recipe


def run(
    settings: ConvertSettings,
    prompts: Sequence[Prompt] | None = None,
    *,
    resuming: RunFolder | None = None,
    on_start: OnStart = lambda trainer, difference: None,
    on_step: OnStep = lambda metrics: None,
    on_note: OnNote = lambda text: None,
    evaluate: Evaluate | None = None,
) -> Path:
    """One conversion, from checks to the saved model."""
    for name in ("model", "output"):
        if not getattr(settings, name):
            raise UsageError(f"no {name} given; name it with --{name}")
    if resuming is None:
        RunFolder.check_free(Path(settings.output))
    check_convertible(load_config(settings.model))
    texts = _texts(settings, prompts, on_note)
    settings = _with_threads(settings)
    device = pick_device(settings.device)
    ar_model, tokenizer = load_ar_model(settings.model, device=device)
    mask_token_id = find_or_add_mask_token(ar_model, tokenizer)
    tokens = special_tokens(ar_model, tokenizer)
    ids = [encode_prompt(tokenizer, text, settings.prompt_tokens) for text in texts]
    student = BlockDiffusionModel(
        ar_model, Geometry(settings.block_size, settings.prediction, settings.context), mask_token_id
    )
    ramp = settings.response_length
    longest = response_length(ramp.rollouts, ramp.start, ramp.end, ramp.rollouts, ramp.shape, settings.block_size)
    check_lengths(ids, longest, student.max_length, settings.block_size)
    difference = identity_check(student)

    responses = _given_responses(settings, tokenizer, tokens)
    checkpoint = resuming.latest() if resuming else None
    student, teacher = _student_and_teacher(student, settings, checkpoint)
    folder = resuming or RunFolder.create(Path(settings.output), settings, prompts)
    trainer = Trainer(
        pair=Pair.of(student, teacher, tokens),
        prompts=ids,
        responses=responses,
        settings=settings,
        run=folder,
        checkpoint=checkpoint,
        save_model=partial(_save, student, tokenizer, settings, folder),
        on_step=on_step,
        evaluate=evaluate,
    )
    on_start(trainer, difference)
    trainer.train()
    _save(student, tokenizer, settings, folder, folder.model)
    return folder.model


def _with_threads(settings: ConvertSettings) -> ConvertSettings:
    """The number of threads becomes part of the run: sums of another number end in other last bits, after a resume."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return settings.model_copy(update={"threads": torch.get_num_threads()})


def _student_and_teacher(
    model: BlockDiffusionModel, settings: ConvertSettings, checkpoint: Path | None
) -> tuple[BlockDiffusionModel, Teacher]:
    """The student, with the checkpoint's weights if there is one, and the frozen original."""
    ar_model = model.model
    if settings.lora_rank is not None:
        torch.manual_seed(settings.seed)
        adapter.add_adapter(ar_model, settings.lora_rank)
        if checkpoint is not None:
            ar_model.load_state_dict(RunFolder.load_state(checkpoint)["adapter"], strict=False)
        teacher = Teacher(model, frozen=partial(adapter.adapter_off, ar_model))
    else:
        original = copy.deepcopy(ar_model).requires_grad_(False)
        teacher = Teacher(BlockDiffusionModel(original, model.geometry, model.mask_token_id))
        if checkpoint is not None:
            ar_model.load_state_dict(load_ar_model(checkpoint, device=model.device)[0].state_dict())
    if settings.gradient_checkpointing:
        model.checkpoint_activations()
    return model, teacher


def _texts(settings: ConvertSettings, given: Sequence[Prompt] | None, on_note: OnNote) -> list[Prompt]:
    """The prompts that were given as a list, else those of the file or data set."""
    if given is None and settings.prompts:
        limits = (settings.prompts_column, settings.prompt_limit)
        return load_prompts(settings.prompts, *limits, _part(settings), on_note)
    if not given:
        raise PromptsError("there are no prompts; name a file or a data set with --prompts")
    texts = given[: settings.prompt_limit]
    return [as_prompt(text, f"row {i} of the list of prompts") for i, text in enumerate(texts)]


def _part(settings: ConvertSettings) -> HubPart:
    return HubPart(settings.prompts_config, settings.prompts_split, settings.prompts_revision)


def _given_responses(
    settings: ConvertSettings, tokenizer: PreTrainedTokenizerBase, tokens: SpecialTokens
) -> list[list[int]] | None:
    if settings.responses_column is None:
        return None
    texts = load_responses(settings.prompts, settings.responses_column, settings.prompt_limit, _part(settings))
    end = list(tokens.stop_token_ids[:1])
    return [[*tokenizer.encode(text, add_special_tokens=False), *end] for text in texts]


def _save(
    student: BlockDiffusionModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: ConvertSettings,
    folder: RunFolder,
    target: Path,
) -> None:
    """The student as a Hugging Face folder; an adapter is merged into plain weights."""
    model = student
    if settings.lora_rank is not None:
        model = BlockDiffusionModel(adapter.merged(student.model), student.geometry, student.mask_token_id)
    local = Path(settings.model)  # a path means nothing on another machine: the card gives the folder's name
    base = local.name if local.exists() else settings.model
    provenance: dict[str, Any] = {"base_model": base, "method": settings.method}
    if folder.metrics.exists() and (logged := folder.logged()):
        provenance["response tokens trained"] = logged[-1].total.tokens_trained
    generation = GenerationSettings(decoding=settings.usual_decoding)
    save_checkpoint(model, tokenizer, target, generation=generation, provenance=provenance)
