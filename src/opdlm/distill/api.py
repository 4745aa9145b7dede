"""`convert`: an AR model and prompts in, a run's folder with a block-diffusion model out."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlm.checkpoints.adapter_folder import Base, weights_hash
from opdlm.checkpoints.hub import check_hub, push
from opdlm.checkpoints.load import load_ar_config, load_ar_model, load_checkpoint
from opdlm.checkpoints.save import save_checkpoint
from opdlm.checkpoints.source import count_parameters
from opdlm.config import ConvertSettings, GenerationSettings, LengthRamp, changed, settings_from
from opdlm.core.schedules import response_length
from opdlm.core.types import Geometry
from opdlm.data.prompts import Prompt, as_prompt, check_lengths, load_prompts, load_responses
from opdlm.distill.loop import Evaluate, OnStep, Trainer
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from opdlm.distill.trackers import Trackers, check_trackers, tracking
from opdlm.distill.validation import MOST_PROMPTS, MOST_TOKENS, Validator
from opdlm.errors import CheckpointError, ConfigError, PromptsError, UsageError
from opdlm.models import adapter
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.devices import pick_device
from opdlm.models.finite import all_finite
from opdlm.models.identity import identity_check
from opdlm.models.tokens import SpecialTokens, encode_prompt, find_or_add_mask_token, special_tokens
from opdlm.recipes import load_recipe, recipe_for
from opdlm.records.history import Resumption
from opdlm.records.run_folder import RunFolder
from opdlm.records.worth import Worth

OnStart = Callable[[Trainer, float], None]


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
    evaluate: Evaluate | None = None,
    **changes: Any,
) -> Path:
    """Continue a run from its newest checkpoint with the settings in its config.toml; ends as if never interrupted.

    Args:
        output: folder of the run.
        on_start, on_step, evaluate: as for `convert`.
        changes: settings from now on, such as `rollouts=200` or `optimiser={"learning_rate": 1e-6}`; those of
            `opdlm.config.CHANGEABLE`. The learning rate follows the schedule of the new number of rollouts. config.toml
            gets them, and history.jsonl says what was changed when.

    Raises:
        RunInUseError: another process writes this run.
        ConfigError: a setting that may not change, or fewer rollouts than are done.
        OpdlmError: as for `convert`.
    """
    with RunFolder.opened(Path(output)) as folder:
        checkpoint = folder.latest()
        settings, altered = changed(folder.settings(), changes)
        begun = folder.rollouts_begun(checkpoint)
        if settings.rollouts is not None and settings.rollouts < begun:
            raise ConfigError(f"setting rollouts: {begun} are done or under way already; give at least as many")
        prepared = _prepare(settings)
        folder.check_fingerprint(prepared.fingerprint, settings.prompts)
        if altered:
            folder.change(prepared.settings, Resumption(rollouts_begun=begun, changed=altered))
        return _train(prepared, folder, checkpoint, on_start=on_start, on_step=on_step, evaluate=evaluate)


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
    recipe = recipe_for(count_parameters(load_ar_config(model)))
    return "standard" if adapter_only and recipe == "small" else recipe


def run(
    settings: ConvertSettings,
    prompts: Sequence[Prompt] | None = None,
    *,
    on_start: OnStart = lambda trainer, difference: None,
    on_step: OnStep = lambda metrics: None,
    evaluate: Evaluate | None = None,
) -> Path:
    """One conversion, from checks to the saved model. `prompts`: in place of those that the settings name."""
    for name in ("model", "output"):
        if not getattr(settings, name):
            raise UsageError(f"no {name} given; name it with --{name}")
    RunFolder.check_free(Path(settings.output))
    prepared = _prepare(settings, prompts)
    with RunFolder.created(Path(settings.output), prepared.settings, prompts) as folder:
        folder.keep_fingerprint(prepared.fingerprint)
        return _train(prepared, folder, None, on_start=on_start, on_step=on_step, evaluate=evaluate)


@dataclass(frozen=True)
class _Prepared:
    """What a conversion starts from, checked.

    Attributes:
        settings: with the number of threads. model: the AR model, adapted. ids: the prompts' token ids.
        eval_ids: of prompts that are kept from training. base: for an adapter that is saved alone.
        responses: given ones, for `sft` alone. fingerprint: SHA-256 of prompts and responses, as hexadecimal text.
        difference: the identity check's largest.
    """

    settings: ConvertSettings
    model: BlockDiffusionModel
    tokenizer: PreTrainedTokenizerBase
    tokens: SpecialTokens
    base: Base | None
    ids: list[list[int]]
    eval_ids: list[list[int]]
    responses: list[list[int]] | None
    fingerprint: str
    difference: float


def _prepare(settings: ConvertSettings, prompts: Sequence[Prompt] | None = None) -> _Prepared:
    """Reads prompts and model, and checks that they fit together; nothing is written."""
    load_ar_config(settings.model)  # a wrong one is an error before the prompts are read
    check_trackers(settings.tracker)
    if settings.push_to_hub:
        check_hub(settings.push_to_hub, settings.hub_private)
    if prompts is None:
        texts = load_prompts(settings.prompts, settings.prompts_column, settings.prompt_limit)
    else:
        texts = [as_prompt(text, i, "the list of prompts") for i, text in enumerate(prompts[: settings.prompt_limit])]
    if not texts:
        raise PromptsError("there are no prompts; name a file or a data set with --prompts")

    settings = _with_threads(settings)
    ar_model, tokenizer = load_ar_model(settings.model, device=pick_device(settings.device))
    if not all_finite(ar_model.parameters()):
        raise CheckpointError(f"{settings.model} has weights that are not finite; use another copy or version of it")
    base = _base(ar_model, settings)
    mask_token_id = find_or_add_mask_token(ar_model, tokenizer)
    tokens = special_tokens(ar_model, tokenizer)
    ids, eval_ids = _held_out(_encoded(texts, tokenizer, settings), tokenizer, settings)
    model = BlockDiffusionModel(
        ar_model, Geometry(settings.block_size, settings.prediction, settings.context), mask_token_id
    )
    check_lengths([*ids, *eval_ids], _longest(settings), model.max_length, settings.block_size)
    difference = identity_check(model)
    responses = _given_responses(settings, tokenizer, tokens)
    fingerprint = sha256(json.dumps([texts, responses]).encode()).hexdigest()
    return _Prepared(settings, model, tokenizer, tokens, base, ids, eval_ids, responses, fingerprint, difference)


def _train(
    prepared: _Prepared,
    folder: RunFolder,
    checkpoint: Path | None,
    *,
    on_start: OnStart,
    on_step: OnStep,
    evaluate: Evaluate | None,
) -> Path:
    """Trains in `folder`, from its `checkpoint` on if there is one; returns the folder of the model."""
    settings = prepared.settings
    student, teacher = _student_and_teacher(prepared.model, settings, checkpoint)
    save_model = partial(_save, student, prepared.tokenizer, settings, prepared.base, folder)
    trainer = Trainer(
        pair=Pair.of(student, teacher, prepared.tokens),
        prompts=prepared.ids,
        responses=prepared.responses,
        settings=settings,
        run=folder,
        checkpoint=checkpoint,
        save_model=save_model,
        on_step=on_step,
        evaluate=evaluate,
        validate=_validator(prepared.ids, prepared.eval_ids, settings),
    )
    on_start(trainer, prepared.difference)
    with tracking(settings, folder) as trackers:
        trainer.on_step = trackers.then(on_step)
        _weigh(trainer, folder, trackers, held_out=bool(prepared.eval_ids))
    save_model(folder.model)
    if settings.push_to_hub:
        push(folder.model, settings.push_to_hub, settings.hub_private)
    return folder.model


def _with_threads(settings: ConvertSettings) -> ConvertSettings:
    """The number of threads becomes part of the run: sums of another number end in other last bits, after a resume."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return settings.model_copy(update={"threads": torch.get_num_threads()})


def _base(ar_model: PreTrainedModel, settings: ConvertSettings) -> Base | None:
    """What an adapter that is saved alone needs to be loaded again."""
    if not settings.adapter_only:
        return None
    local = Path(settings.model)
    return Base(str(local.resolve()) if local.exists() else settings.model, weights_hash(ar_model))


def _encoded(texts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, settings: ConvertSettings) -> list[list[int]]:
    return [encode_prompt(tokenizer, text)[: settings.prompt_tokens] for text in texts]


def _held_out(
    ids: list[list[int]], tokenizer: PreTrainedTokenizerBase, settings: ConvertSettings
) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts to train on, and those that are kept from training: of a file of their own, or the last ones."""
    count = settings.eval_count
    if settings.eval_prompts:
        texts = load_prompts(settings.eval_prompts, settings.prompts_column, count)
        return ids, _encoded(texts, tokenizer, settings)
    if count is None:
        return ids, []
    if count >= len(ids):
        raise PromptsError(f"eval_count keeps {count} of {len(ids)} prompts from training; lower it or add prompts")
    return ids[:-count], ids[-count:]


def _longest(settings: ConvertSettings) -> int:
    """Tokens of the longest response that the run can have."""
    ramp = settings.response_length
    return response_length(ramp.rollouts, ramp.start, ramp.end, ramp.rollouts, ramp.shape, settings.block_size)


def _validator(ids: Sequence[list[int]], eval_ids: Sequence[list[int]], settings: ConvertSettings) -> Validator:
    """On the held-out prompts, else on some of the training's: what the run came to is worth knowing without any."""
    generation = GenerationSettings(
        decoding=settings.usual_decoding, max_new_tokens=min(_longest(settings), MOST_TOKENS)
    )
    return Validator(eval_ids or ids[:MOST_PROMPTS], generation, settings.rollout_batch)


def _weigh(trainer: Trainer, folder: RunFolder, trackers: Trackers, held_out: bool) -> None:
    """Trains, and keeps what it was worth."""
    assert trainer.validate is not None
    worth = folder.kept_worth()
    if worth is None:
        with trainer.precision():
            # A run of an earlier version that is continued: its student is no longer as it was before.
            before = trainer.validate(trainer.pair) if trainer.checkpoint is None else None
        worth = Worth(held_out=held_out, before=before)
        folder.keep_worth(worth)
    trackers.begin(folder.settings(), worth.before)
    last = trainer.train()
    folder.keep_worth(worth.model_copy(update={"updates": last.updates, "after": last.validation}))


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
            ar_model.load_state_dict(load_checkpoint(checkpoint, device=model.device)[0].model.state_dict())
    if settings.gradient_checkpointing:
        model.checkpoint_activations()
    return model, teacher


def _given_responses(
    settings: ConvertSettings, tokenizer: PreTrainedTokenizerBase, tokens: SpecialTokens
) -> list[list[int]] | None:
    if settings.responses_column is None:
        return None
    texts = load_responses(settings.prompts, settings.responses_column, settings.prompt_limit)
    end = list(tokens.stop_token_ids[:1])
    return [[*tokenizer.encode(text, add_special_tokens=False), *end] for text in texts]


def _save(
    student: BlockDiffusionModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: ConvertSettings,
    base: Base | None,
    folder: RunFolder,
    target: Path,
) -> None:
    """The student as a Hugging Face folder; an adapter is merged into plain weights, or with its `base` alone in it."""
    model = student
    if settings.lora_rank is not None and base is None:
        model = BlockDiffusionModel(adapter.merged(student.model), student.geometry, student.mask_token_id)
    local = Path(settings.model)  # a path means nothing on another machine: the card gives the folder's name
    name = local.name if local.exists() else settings.model
    provenance: dict[str, Any] = {"base_model": name, "method": settings.method}
    if folder.metrics.exists() and (logged := folder.logged()):
        provenance["response tokens trained"] = logged[-1].total.tokens_trained
    if (worth := folder.kept_worth()) is not None and worth.after is not None:
        provenance |= worth.facts()
    generation = GenerationSettings(decoding=settings.usual_decoding)
    save_checkpoint(model, tokenizer, target, generation=generation, provenance=provenance, base=base)
