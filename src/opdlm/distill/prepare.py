"""What a conversion starts from: settings, prompts and model, read and checked; nothing is written."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlm.checkpoints.adapter_folder import Base
from opdlm.checkpoints.attach import Donor
from opdlm.checkpoints.hub import check_hub
from opdlm.checkpoints.load import load_ar_config, load_ar_model, weights_note
from opdlm.config import ConvertSettings, DistillSettings
from opdlm.core.schedules import response_length
from opdlm.core.types import Geometry
from opdlm.data.hub_set import HubPart
from opdlm.data.prompts import Prompt, as_prompt, check_lengths, load_prompts, load_responses
from opdlm.distill.sglang_worker import check_rollout_server
from opdlm.distill.trackers import check_trackers
from opdlm.errors import CheckpointError, ConfigError, PromptsError
from opdlm.models.adapter import check_rank
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.devices import pick_device
from opdlm.models.drafting import DraftingModel
from opdlm.models.finite import all_finite
from opdlm.models.gate import Gate
from opdlm.models.identity import identity_check
from opdlm.models.low_bits import bitsandbytes
from opdlm.models.tokens import SpecialTokens, encode_prompt, find_or_add_mask_token, special_tokens

OnNote = Callable[[str], None]
"""Called with a line that says what was found, such as which column the prompts were taken from."""


@dataclass(frozen=True)
class Prepared:
    """What a conversion starts from, checked.

    Attributes:
        settings: with the number of threads. model: the AR model, adapted. ids: the prompts' token ids.
        eval_ids: of prompts that are kept from training. base: what an adapter or a gate is trained on.
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


def prepare(
    settings: ConvertSettings,
    prompts: Sequence[Prompt] | None = None,
    on_note: OnNote = lambda text: None,
    *,
    begun: bool = False,
) -> Prepared:
    """Reads prompts and model, and checks that they fit together; nothing is written.

    `begun`: there is a checkpoint to go on from, so `gate_from` is no longer needed.
    """
    load_ar_config(settings.model)  # a wrong one is an error before the prompts are read
    if note := weights_note(settings.model):
        on_note(f"AR model: {note}")
    check_trackers(settings.tracker)
    if settings.teacher_precision == "4bit" or settings.optimiser.moments == "8bit":
        bitsandbytes()
    if settings.push_to_hub:
        check_hub(settings.push_to_hub, settings.hub_private)
    texts = read_texts(settings, prompts, on_note)
    settings = _with_threads(settings)
    device = pick_device(settings.device)
    check_device(settings, device)
    ar_model, tokenizer = load_ar_model(settings.model, device=device)
    if not all_finite(ar_model.parameters()):
        raise CheckpointError(f"{settings.model} has weights that are not finite; use another copy or version of it")
    base = _base(ar_model, settings)
    model, tokens = adapted(ar_model, tokenizer, settings, begun=begun)
    ids, eval_ids = _held_out(encoded(texts, tokenizer, settings), tokenizer, settings)
    check_fit(model, [*ids, *eval_ids], settings)
    check_rollout_server(settings, model, tokenizer)
    difference = identity_check(model)
    responses = _given_responses(settings, tokenizer, tokens)
    fingerprint = sha256(json.dumps([texts, responses]).encode()).hexdigest()
    return Prepared(settings, model, tokenizer, tokens, base, ids, eval_ids, responses, fingerprint, difference)


def adapted(
    ar_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: ConvertSettings, *, begun: bool = False
) -> tuple[BlockDiffusionModel, SpecialTokens]:
    """The model that will write and learn: with a mask token, or with a gate."""
    if settings.method == "lossless":
        tokens = special_tokens(ar_model, tokenizer, needs_mask=False)
        if settings.gate_from and not begun:
            return _with_found_gate(ar_model, settings), tokens
        return _with_new_gate(ar_model, settings), tokens
    if settings.attention == "flex":
        ar_model.set_attn_implementation("flex_attention")
    mask_token_id = find_or_add_mask_token(ar_model, tokenizer)
    geometry = Geometry(settings.block_size, settings.prediction, settings.context)
    return BlockDiffusionModel(ar_model, geometry, mask_token_id), special_tokens(ar_model, tokenizer)


def _with_found_gate(ar_model: PreTrainedModel, settings: ConvertSettings) -> DraftingModel:
    """With that of another lossless model. Raises ConfigError where it is no longer as the run's settings say."""
    donor = Donor.found(settings.gate_from)
    for name, value in donor.shape().items():
        if getattr(settings, name) != value:
            was = getattr(settings, name)
            raise ConfigError(f"setting {name}: {was}, but the gate of {donor.name} has {value} now; begin a new run")
    return donor.on(ar_model, settings.model)


def _with_new_gate(ar_model: PreTrainedModel, settings: ConvertSettings) -> DraftingModel:
    """The identity, until it is trained or a checkpoint is loaded."""
    assert settings.lora_rank is not None
    check_rank(ar_model, settings.lora_rank)
    torch.manual_seed(settings.seed)
    gate = Gate(ar_model, settings.lora_rank, settings.window_form, settings.window)
    return DraftingModel(ar_model, gate.to(ar_model.device))


def check_device(settings: DistillSettings, device: torch.device) -> None:
    """Whether what is for a GPU has one. Raises ConfigError."""
    if settings.attention == "flex" and device.type != "cuda":
        raise ConfigError(f"setting attention: flex does not train on {device.type}; leave it out there")
    if settings.optimiser.moments == "offload" and device.type != "cuda":
        raise ConfigError(
            "setting optimiser.moments: offload moves what a GPU holds to the CPU's memory, and training runs on "
            f"{device.type}; leave it out, or take 8bit"
        )


def check_fit(model: BlockDiffusionModel, ids: Sequence[list[int]], settings: DistillSettings) -> None:
    """Whether prompts and settings fit the model.

    Raises:
        ContextLengthError: a prompt and its response are too long. ConfigError: so high an adapter's rank.
    """
    if settings.lora_rank is not None:
        check_rank(model.model, settings.lora_rank)
    check_lengths(ids, longest_response(settings), model.max_length, model.geometry.block_size)


def read_texts(settings: ConvertSettings, given: Sequence[Prompt] | None, on_note: OnNote) -> list[Prompt]:
    """The prompts that were given as a list, else those of the file or data set. Raises PromptsError."""
    if given is None and settings.prompts:
        limits = (settings.prompts_column, settings.prompt_limit)
        return load_prompts(settings.prompts, *limits, _part(settings), on_note)
    if not given:
        raise PromptsError("there are no prompts; name a file or a data set with --prompts")
    texts = given[: settings.prompt_limit]
    return [as_prompt(text, f"row {i} of the list of prompts") for i, text in enumerate(texts)]


def _part(settings: ConvertSettings) -> HubPart:
    return HubPart(settings.prompts_config, settings.prompts_split, settings.prompts_revision)


def _with_threads(settings: ConvertSettings) -> ConvertSettings:
    """The number of threads becomes part of the run: sums of another number end in other last bits, after a resume."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return settings.model_copy(update={"threads": torch.get_num_threads()})


def _base(ar_model: PreTrainedModel, settings: ConvertSettings) -> Base | None:
    """What an adapter that is saved alone, as in each checkpoint, needs to be loaded again."""
    return None if settings.lora_rank is None else Base.of(settings.model, ar_model)


def encoded(texts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, settings: ConvertSettings) -> list[list[int]]:
    """Token ids of each prompt, by the chat template where there is one. Raises PromptsError where one has none."""
    return [encode_prompt(tokenizer, text, settings.prompt_tokens) for text in texts]


def _held_out(
    ids: list[list[int]], tokenizer: PreTrainedTokenizerBase, settings: ConvertSettings
) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts to train on, and those that are kept from training: of a file of their own, or the last ones."""
    count = settings.eval_count
    if settings.eval_prompts:
        texts = load_prompts(settings.eval_prompts, settings.prompts_column, count, _part(settings))
        return ids, encoded(texts, tokenizer, settings)
    if count is None:
        return ids, []
    if count >= len(ids):
        raise PromptsError(f"eval_count keeps {count} of {len(ids)} prompts from training; lower it or add prompts")
    return ids[:-count], ids[-count:]


def longest_response(settings: DistillSettings) -> int:
    """Tokens of the longest response that the run can have."""
    ramp = settings.response_length
    return response_length(ramp.rollouts, ramp.start, ramp.end, ramp.rollouts, ramp.shape, settings.block_size)


def _given_responses(
    settings: ConvertSettings, tokenizer: PreTrainedTokenizerBase, tokens: SpecialTokens
) -> list[list[int]] | None:
    if settings.responses_column is None:
        return None
    texts = load_responses(settings.prompts, settings.responses_column, settings.prompt_limit, _part(settings))
    end = list(tokens.stop_token_ids[:1])
    return [[*tokenizer.encode(text, add_special_tokens=False), *end] for text in texts]
