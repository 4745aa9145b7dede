"""What can be known before a lossless conversion: can the model draft, how large is the gate, what does it cost."""

from collections.abc import Iterator
from dataclasses import replace

from opdlm.config import ConvertSettings, settings_from
from opdlm.distill import footprint
from opdlm.distill.preflight import Findings, Question, command, described, fitted, opened, shape_of, within_context
from opdlm.models.devices import free_bytes
from opdlm.models.drafting import DraftingModel
from opdlm.models.gate import Gate
from opdlm.models.identity import identity_check
from opdlm.models.tokens import special_tokens
from opdlm.recipes import with_recipe

RECIPE = "lossless"


def examine_lossless(question: Question) -> Iterator[Findings]:
    """As `preflight.examine`, of `convert --lossless`."""
    settings = settings_from(ConvertSettings, with_recipe(RECIPE, question.changes))
    opening = yield from opened(question, RECIPE, settings, settings.lora_rank or 1)
    ar_model, rank, device = opening.ar_model, opening.rank, opening.device
    gate = Gate(ar_model, rank, settings.window_form, settings.window).to(device)
    model, tokens = DraftingModel(ar_model, gate), special_tokens(ar_model, opening.tokenizer, needs_mask=False)
    yield described(opening, model.max_length, tokens)
    advised = within_context(settings, model.max_length).model_copy(update={"lora_rank": rank})
    longest = yield from fitted(opening, model, settings, advised)
    yield {"identity_difference": identity_check(model), "mask_honoured": True, "lossless": True}

    shape = shape_of(question, settings, longest, model.max_length)
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
