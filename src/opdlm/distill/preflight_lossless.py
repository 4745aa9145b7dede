"""What can be known before a lossless conversion: can the model draft, how large is the gate, what does it cost."""

from collections.abc import Iterator
from dataclasses import replace

from opdlm.checkpoints.load import load_ar_config, load_ar_model, weights_note
from opdlm.checkpoints.source import count_parameters
from opdlm.config import ConvertSettings, settings_from
from opdlm.distill import footprint
from opdlm.distill.preflight import PROMPT_TOKENS, Findings, Question, command, shape_of, within_context
from opdlm.distill.prepare import check_fit, encoded, read_texts
from opdlm.models.adapter import check_rank, largest_rank
from opdlm.models.devices import free_bytes, pick_device
from opdlm.models.drafting import DraftingModel
from opdlm.models.gate import Gate
from opdlm.models.identity import identity_check
from opdlm.models.tokens import special_tokens
from opdlm.recipes import load_recipe

RECIPE = "lossless"


def examine_lossless(question: Question) -> Iterator[Findings]:
    """As `preflight.examine`, of `convert --lossless`."""
    device = pick_device(question.device)
    parameters = count_parameters(load_ar_config(question.model))
    settings = settings_from(ConvertSettings, {**load_recipe(RECIPE), **question.changes})
    yield {"model": question.model, "convertible": True, "parameters": parameters, "recipe": RECIPE}
    if note := weights_note(question.model):
        yield {"weights": note}
    taken: list[str] = []
    texts = read_texts(settings, None, taken.append) if settings.prompts else []
    if taken:
        yield {"prompts": taken[0].partition(": ")[2]}

    ar_model, tokenizer = load_ar_model(question.model, device=device)
    if question.lora_rank is not None:
        check_rank(ar_model, question.lora_rank)
    rank = question.lora_rank or min(settings.lora_rank or 1, largest_rank(ar_model))
    gate = Gate(ar_model, rank, settings.window_form, settings.window).to(device)
    model, tokens = DraftingModel(ar_model, gate), special_tokens(ar_model, tokenizer, needs_mask=False)
    yield {
        "architecture": type(ar_model).__name__,
        "vocabulary": len(tokenizer),
        "context": model.max_length,
        "end_tokens": tokenizer.convert_ids_to_tokens(list(tokens.stop_token_ids)),
        "chat_template": bool(tokenizer.chat_template),
    }
    ids = encoded(texts or ["Hello"], tokenizer, settings)  # a broken chat template is an error without prompts too
    advised = within_context(settings, model.max_length).model_copy(update={"lora_rank": rank})
    check_fit(model, ids, advised)
    if texts:
        yield {"longest_prompt": max(map(len, ids))}
    yield {"identity_difference": identity_check(model), "mask_honoured": True, "lossless": True}

    shape = shape_of(question, settings, max(map(len, ids)) if texts else PROMPT_TOKENS, model.max_length)
    memory = footprint.estimate_lossless(model, tokens, settings, shape)
    free = free_bytes(device)
    fits = free is None or memory["training_bytes"] <= free
    about = {
        "rank": rank,
        "window": settings.window,
        "form": settings.window_form,
        "layers": len(gate.names),
        "parameters": sum(parameter.numel() for parameter in gate.parameters()),
        "bytes": memory["gate_bytes"],
    }
    yield {"gate": about, "memory": memory, "device": str(device), "free_bytes": free, "training_fits": fits}
    flags = {"--lossless": ""} | ({} if rank == settings.lora_rank else {"--lora": str(rank)})
    if not fits and free is not None:
        flags["--rows-per-micro-batch"] = "1"
        fits = footprint.estimate_lossless(model, tokens, settings, replace(shape, rows=1))["training_bytes"] <= free
    shorter = settings if advised.response_length == settings.response_length else advised
    yield {"command": command(question, settings, shorter, flags), "command_fits": fits}
