"""`convert`: an AR model and prompts in, a run's folder with a block-diffusion model out."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from opdlm.checkpoints.attach import Donor
from opdlm.checkpoints.hub import push
from opdlm.checkpoints.load import load_ar_config, load_checkpoint, provenance_of, shown_name
from opdlm.checkpoints.save import save_checkpoint
from opdlm.checkpoints.source import count_parameters
from opdlm.checkpoints.trust import remote_code
from opdlm.config import (
    CheckedDecoding,
    ConvertSettings,
    GenerationSettings,
    LengthRamp,
    VerifiedDecoding,
    changed,
    settings_from,
)
from opdlm.data.prompts import Prompt
from opdlm.distill.loop import Evaluate, OnStep, Trainer
from opdlm.distill.pair import Pair
from opdlm.distill.prepare import OnNote, Prepared, longest_response, prepare
from opdlm.distill.sglang_worker import worker_of
from opdlm.distill.teacher import Teacher
from opdlm.distill.trackers import Trackers, tracking
from opdlm.distill.validation import MOST_PROMPTS, MOST_TOKENS, Validator
from opdlm.errors import ConfigError, UsageError
from opdlm.models import adapter, low_bits
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.devices import pick_device
from opdlm.models.drafting import DraftingModel
from opdlm.models.tokens import decode_inside
from opdlm.parallel.launch import launched
from opdlm.parallel.ranks import Ranks
from opdlm.recipes import recipe_for, with_recipe
from opdlm.records.history import Resumption
from opdlm.records.metrics import StepMetrics
from opdlm.records.run_folder import RunFolder
from opdlm.records.trajectory import Trajectory
from opdlm.records.worth import Worth
from opdlm.report.html import REPORT, write_report

ROLLOUT_WEIGHTS = "rollout-weights"
"""Folder in a run's folder, from which a rollout server takes the student's weights; empty between rollouts."""
_NOT_LOSSLESS = ("block_size", "prediction", "context", "warm_start_rollouts", "gradient_checkpointing")
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
    on_note: OnNote = lambda text: None,
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
    settings, altered = changed(RunFolder.found(Path(output)).settings(), changes)
    # A run's folder may be someone else's: what its config.toml says is no leave to run code.
    trusted = remote_code("trust_remote_code" in changes and settings.trust_remote_code)
    opened = RunFolder.opened(Path(output))
    with trusted, _ranks(settings, Path(output)) as ranks, _by_one(ranks, opened, Path(output)) as folder:
        checkpoint = ranks.by_one(partial(_latest, folder, on_note))
        with ranks.agreed():
            begun = folder.rollouts_begun(checkpoint)
            if settings.rollouts is not None and settings.rollouts < begun:
                raise ConfigError(f"setting rollouts: {begun} are done or under way already; give at least as many")
            if ranks.saves and settings.rollouts == begun:
                on_note(f"all {begun} rollouts are done already; a larger --rollouts goes on")
            notes = on_note if ranks.saves else _unsaid
            prepared = prepare(settings, on_note=notes, begun=checkpoint is not None)

        def keep() -> None:
            folder.check_fingerprint(prepared.fingerprint, settings.prompts)
            if altered:
                folder.change(prepared.settings, Resumption(rollouts_begun=begun, changed=altered))

        ranks.by_one(keep)
        return _train(prepared, folder, checkpoint, ranks, on_start=on_start, on_step=on_step, evaluate=evaluate)


def _latest(folder: RunFolder, on_note: OnNote) -> Path | None:
    """The newest checkpoint, its files verified."""
    checkpoint = folder.latest()
    if checkpoint is not None and not folder.check(checkpoint):
        on_note(f"{checkpoint} has no checksums: an earlier version wrote it, and whether it is intact is not known")
    return checkpoint


def resolve(**settings: Any) -> ConvertSettings:
    """Settings with the recipe's values as defaults; where no recipe is named, that for models of this size.

    Raises:
        ConfigError: a key is unknown or a value out of range.
        ModelNotFoundError, UnsupportedModelError: there is no such model, or none that can be converted.
    """
    if settings.get("recipe") is None and settings.get("model"):
        with remote_code(settings.get("trust_remote_code") is True):
            settings["recipe"] = recipe_for(count_parameters(load_ar_config(settings["model"])))
    merged = with_recipe(settings.get("recipe"), settings)
    if merged.get("method") == "lossless" and (none := [name for name in _NOT_LOSSLESS if settings.get(name)]):
        raise ConfigError(f"setting {none[0]}: a lossless conversion has no such thing; leave it out")
    if merged.get("gate_from"):
        merged |= _with_gate(str(merged["gate_from"]), settings)
    ramp = settings.get("response_length")
    if isinstance(ramp, Mapping) and "start" not in ramp and str(ramp.get("end", "")).isdigit():
        whole = {**LengthRamp().model_dump(), **merged["response_length"]}
        start = min(whole["start"], int(whole["end"]))  # the end alone is enough
        merged["response_length"] = {**whole, "start": start}
    return settings_from(ConvertSettings, merged)


def _with_gate(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a conversion that begins with that gate. Raises ConfigError if others are given."""
    shape = Donor.found(name).shape()
    for setting, value in shape.items():
        if setting in given and str(given[setting]) != str(value):
            raise ConfigError(f"setting {setting}: the gate of {name} has {value}; leave it out")
    return {"gate_from": name, **shape}


def run(
    settings: ConvertSettings,
    prompts: Sequence[Prompt] | None = None,
    *,
    on_start: OnStart = lambda trainer, difference: None,
    on_step: OnStep = lambda metrics: None,
    on_note: OnNote = lambda text: None,
    evaluate: Evaluate | None = None,
) -> Path:
    """One conversion, from checks to the saved model. `prompts`: in place of those that the settings name."""
    for name in ("model", "output"):
        if not getattr(settings, name):
            raise UsageError(f"no {name} given; name it with --{name}")
    output = Path(settings.output)
    with remote_code(settings.trust_remote_code), _ranks(settings, output) as ranks:
        ranks.by_one(partial(RunFolder.check_free, output))
        with ranks.agreed():
            prepared = prepare(settings, prompts, on_note if ranks.saves else _unsaid)
        with _by_one(ranks, RunFolder.created(output, prepared.settings, prompts), output) as folder:
            ranks.by_one(partial(folder.keep_fingerprint, prepared.fingerprint))
            return _train(prepared, folder, None, ranks, on_start=on_start, on_step=on_step, evaluate=evaluate)


def _ranks(settings: ConvertSettings, output: Path) -> AbstractContextManager[Ranks]:
    """The processes that share the run."""
    device = pick_device(settings.device)
    return launched(
        device,
        sharded=settings.sharding == "full",
        bfloat16=settings.low_precision(device.type),
        way_out=f"continue from the newest checkpoint: opdlm convert --resume {output}",
    )


def _unsaid(text: str) -> None:
    """What another process says."""


@contextmanager
def _by_one(ranks: Ranks, opening: AbstractContextManager[RunFolder], path: Path) -> Iterator[RunFolder]:
    """The folder of the run, which the process that saves opens and holds; the others read in it."""
    with ExitStack() as stack:
        with ranks.agreed():
            folder = stack.enter_context(opening) if ranks.saves else RunFolder(path)
        yield folder


def _train(
    prepared: Prepared,
    folder: RunFolder,
    checkpoint: Path | None,
    ranks: Ranks,
    *,
    on_start: OnStart,
    on_step: OnStep,
    evaluate: Evaluate | None,
) -> Path:
    """Trains in `folder`, from its `checkpoint` on if there is one; returns the folder of the model."""
    settings = prepared.settings
    if settings.rollout_server and ranks.count > 1:
        raise ConfigError("a rollout server writes for one process; leave rollout_server out, or start one process")
    with ranks.agreed():
        student, teacher = _student_and_teacher(prepared.model, settings, checkpoint)
    worker = worker_of(settings, student, prepared.tokenizer, prepared.tokens, folder.path / ROLLOUT_WEIGHTS)
    trainer = Trainer(
        pair=Pair.of(student, teacher, prepared.tokens, ranks, worker),
        prompts=prepared.ids,
        responses=prepared.responses,
        settings=settings,
        run=folder,
        checkpoint=checkpoint,
        save_model=partial(_saving, prepared, folder, whole=False),
        on_step=on_step,
        evaluate=evaluate,
        validate=_validator(prepared.ids, prepared.eval_ids, settings),
        in_words=partial(_in_words, prepared.tokenizer, prepared.tokens.mask_token_id),
        ranks=ranks,
    )
    ranks.by_one(lambda: on_start(trainer, prepared.difference))
    with tracking(settings.tracker if ranks.saves else (), folder) as trackers:
        trainer.on_step = trackers.then(_reporting(settings, folder, trainer.on_step))
        _weigh(trainer, folder, trackers, held_out=bool(prepared.eval_ids))
    with ranks.complete(student) as whole:
        ranks.by_one(partial(_finish, prepared, folder, whole))
    return folder.model


def _finish(prepared: Prepared, folder: RunFolder, student: BlockDiffusionModel) -> None:
    """The converted model, where it is to be."""
    settings = prepared.settings
    _saving(prepared, folder, student, whole=True)(folder.model)
    if settings.report_every is not None:
        write_report([folder.path], folder.path / REPORT)
    if settings.push_to_hub:
        push(folder.model, settings.push_to_hub, settings.hub_private)


def _validator(ids: Sequence[list[int]], eval_ids: Sequence[list[int]], settings: ConvertSettings) -> Validator:
    """On the held-out prompts, else on some of the training's: what the run came to is worth knowing without any."""
    decoding = settings.usual_decoding
    if isinstance(decoding, VerifiedDecoding | CheckedDecoding):
        decoding = decoding.model_copy(update={"auto": False})  # else its forwards would depend on the clock
    generation = GenerationSettings(decoding=decoding, max_new_tokens=min(longest_response(settings), MOST_TOKENS))
    return Validator(eval_ids or ids[:MOST_PROMPTS], generation, settings.rollout_batch)


def _reporting(settings: ConvertSettings, folder: RunFolder, on_step: OnStep) -> OnStep:
    """`on_step`, after which report.html is refreshed where that is due."""
    if (every := settings.report_every) is None:
        return on_step

    def both(metrics: StepMetrics) -> None:
        on_step(metrics)
        if metrics.rollout % every == 0:
            write_report([folder.path], folder.path / REPORT)

    return both


def _in_words(tokenizer: PreTrainedTokenizerBase, mask_token_id: int, trajectory: Trajectory) -> Trajectory:
    prompt = str(tokenizer.decode(list(trajectory.prompt_ids), skip_special_tokens=True))
    return trajectory.worded(lambda token: decode_inside(tokenizer, mask_token_id, [token]), prompt)


def _weigh(trainer: Trainer, folder: RunFolder, trackers: Trackers, held_out: bool) -> None:
    """Trains, and keeps what it was worth."""
    assert trainer.validate is not None
    ranks, worth = trainer.ranks, trainer.ranks.by_one(folder.kept_worth)
    if worth is None:
        # A run of an earlier version that is continued: its student is no longer as it was before.
        before = trainer.validated(trainer.validate) if trainer.checkpoint is None else None
        worth = Worth(held_out=held_out, before=before)
        ranks.by_one(partial(folder.keep_worth, worth))
    trackers.begin(folder.settings(), worth.before)
    last = trainer.train()
    ranks.by_one(
        partial(folder.keep_worth, worth.model_copy(update={"updates": last.updates, "after": last.validation}))
    )


def _student_and_teacher(
    model: BlockDiffusionModel, settings: ConvertSettings, checkpoint: Path | None
) -> tuple[BlockDiffusionModel, Teacher]:
    """The student, with the checkpoint's weights if there is one, and the frozen original."""
    ar_model = model.model
    if isinstance(model, DraftingModel):
        if checkpoint is not None:
            model.gate.load_state_dict(RunFolder.load_state(checkpoint)["gate"])
        if settings.narrows(model.device.type):
            low_bits.narrow_frozen(ar_model)
        return model, Teacher(model)
    if settings.lora_rank is not None:
        torch.manual_seed(settings.seed)
        adapter.add_adapter(ar_model, settings.lora_rank)
        if checkpoint is not None:
            ar_model.load_state_dict(RunFolder.load_state(checkpoint)["adapter"], strict=False)
        teacher, frozen = Teacher(model, frozen=partial(adapter.adapter_off, ar_model)), ar_model
    else:
        original = low_bits.reduced(copy.deepcopy(ar_model).requires_grad_(False), settings.teacher_precision)
        teacher, frozen = Teacher(BlockDiffusionModel(original, model.geometry, model.mask_token_id)), original
        if checkpoint is not None:
            ar_model.load_state_dict(load_checkpoint(checkpoint, device=model.device)[0].model.state_dict())
    if settings.narrows(model.device.type):
        low_bits.narrow_frozen(frozen)
    if settings.gradient_checkpointing:
        model.checkpoint_activations()
    return model, teacher


def _saving(
    prepared: Prepared, folder: RunFolder, student: BlockDiffusionModel, *, whole: bool
) -> Callable[[Path], None]:
    """What writes the student as a Hugging Face folder, with what is known of it now.

    A checkpoint of an adapter is the adapter alone: its base never changes. `whole`: as the settings want the model, an
    adapter merged into plain weights, or alone with `adapter_only`.
    """
    settings, base = prepared.settings, prepared.base
    if whole and not settings.adapter_only:
        base = None
    if base is None and isinstance(student, DraftingModel):
        student = low_bits.widened(student) if settings.narrows(student.device.type) else student
    elif base is None and settings.lora_rank is not None:
        student = BlockDiffusionModel(adapter.merged(student.model), student.geometry, student.mask_token_id)
    provenance: dict[str, Any] = {**provenance_of(settings.model), "method": settings.method}
    if settings.gate_from:
        provenance["gate from"] = shown_name(settings.gate_from)
    if folder.metrics.exists() and (logged := folder.logged()):
        provenance["response tokens trained"] = logged[-1].total.tokens_trained
    if (worth := folder.kept_worth()) is not None and worth.after is not None:
        provenance |= worth.facts()
    generation = GenerationSettings(decoding=settings.usual_decoding)

    def write(target: Path) -> None:
        save_checkpoint(student, prepared.tokenizer, target, generation=generation, provenance=provenance, base=base)

    return write
