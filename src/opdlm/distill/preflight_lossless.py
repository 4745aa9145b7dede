"""What can be known before a lossless conversion: can the model draft, how large is the gate, what does it cost."""

from collections.abc import Iterator
from dataclasses import replace

from opdlm.checkpoints.load import load_ar_config, load_ar_model
from opdlm.checkpoints.source import count_parameters
from opdlm.config import DistillSettings, settings_from
from opdlm.data.prompts import check_lengths
from opdlm.distill import footprint
from opdlm.distill.preflight import Findings, Question, command, shape_of
from opdlm.models.devices import free_bytes, pick_device
from opdlm.models.drafting import DraftingModel
from opdlm.models.gate import Gate, adapted_layers
from opdlm.models.identity import identity_check
from opdlm.models.parts import check_rank
from opdlm.models.tokens import encode_prompt, special_tokens
from opdlm.recipes import load_recipe

RECIPE = "lossless"


def examine_lossless(question: Question) -> Iterator[Findings]:
    """As `preflight.examine`, of `convert --lossless`. A `question` has no changes of settings but the rank."""
    device = pick_device(question.device)
    parameters = count_parameters(load_ar_config(question.model))
    settings = settings_from(DistillSettings, load_recipe(RECIPE))
    yield {"model": question.model, "convertible": True, "parameters": parameters, "recipe": RECIPE}

    ar_model, tokenizer = load_ar_model(question.model, device=device)
    layers = adapted_layers(ar_model)
    check_rank(question.lora_rank, layers.values())
    gate = Gate(ar_model, question.lora_rank, settings.window_form, settings.window).to(device)
    model = DraftingModel(ar_model, gate)
    shape = shape_of(question, settings, model.max_length)
    check_lengths([[0] * min(shape.prompt_tokens, 16)], 1, model.max_length, 1)
    tokens = special_tokens(ar_model, tokenizer, needs_mask=False)
    yield {
        "architecture": type(ar_model).__name__,
        "vocabulary": len(tokenizer),
        "context": model.max_length,
        "end_tokens": tokenizer.convert_ids_to_tokens(list(tokens.stop_token_ids)),
        "chat_template": bool(tokenizer.chat_template),
    }
    encode_prompt(tokenizer, "Hello")  # a broken chat template is an error here, as in a conversion
    yield {"identity_difference": identity_check(model), "mask_honoured": True, "lossless": True}

    weights = sum(parameter.numel() for parameter in gate.parameters())
    memory = footprint.estimate_lossless(model, tokens, settings, shape)
    free = free_bytes(device)
    fits = free is None or memory["training_bytes"] <= free
    yield {
        "gate": {
            "rank": question.lora_rank,
            "window": settings.window,
            "form": settings.window_form,
            "layers": len(layers),
            "parameters": weights,
            "bytes": memory["gate_bytes"],
        },
        "memory": memory,
        "device": str(device),
        "free_bytes": free,
        "training_fits": fits,
    }
    flags = {"--lossless": ""}
    if question.lora_rank != settings.lora_rank:
        flags["--lora"] = str(question.lora_rank)
    if not fits and free is not None:
        flags["--rows-per-micro-batch"] = "1"
        fits = footprint.estimate_lossless(model, tokens, settings, replace(shape, rows=1))["training_bytes"] <= free
    typed = command(question, model.max_length, settings.response_length.end, flags)
    yield {"command": typed, "command_fits": fits}
