"""Can a mask adapt this architecture? Decided from the config and the model class, before any weight is read."""

import inspect
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

from opdlm.errors import UnsupportedModelError
from opdlm.models.parts import cache_argument

_MASKED_LAYERS = ("full_attention", "sliding_attention")


def sliding_windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """The kinds of attention layers that the decoder has, each with its window in tokens (None: no window).

    Without `layer_types` in the config, a `sliding_window` counts for all layers: as in Mistral.
    """
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        layer_types = ["full_attention" if window is None else "sliding_attention"]
    windows = {"full_attention": None, "sliding_attention": window}
    return {kind: windows[kind] for kind in sorted(set(layer_types))}


def check_convertible(config: PreTrainedConfig) -> None:
    """Raises UnsupportedModelError with the reason and the fix, if no mask makes this a block-diffusion model.

    A pass is a promise about the architecture's shape only; `identity_check` tests the model itself.
    """
    reason = _obstacle(config)
    if reason is not None:
        raise UnsupportedModelError(f"a model of type {config.model_type!r} cannot be converted: {reason}")


def _obstacle(config: PreTrainedConfig) -> str | None:
    """What stands in the way and what to use instead, or None."""
    if config.is_encoder_decoder:
        return "it is an encoder-decoder; choose a decoder-only model"
    if config.get_text_config() is not config:
        return "it is a composite of a language model and others (vision, audio); use the text model alone"
    named: Any = config.architectures or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return "'architectures' in its config.json is no list of names; correct it, or download the model again"
    if named and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in named):
        return f"it was saved as {', '.join(named)}, not as a causal language model; choose one that was"
    model_class = _causal_class(config)
    if model_class is None:
        return "transformers has no causal language model of this type; choose a decoder-only model"
    if type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False):
        return (
            "it is an encoder such as BERT, in which every token sees the whole text; choose a decoder, which was "
            "trained from left to right with a causal language-model head"
        )
    if model_class._is_stateful:
        return "its state-space or linear-attention layers take no mask; choose one with softmax attention only"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - set(_MASKED_LAYERS))
    if other:
        return f"it has layers of kind {', '.join(other)}; choose a model with full or sliding softmax attention only"
    if getattr(config, "alibi", False):
        return "its positions are ALiBi biases, tied to the order of columns; choose a model with position ids"
    if getattr(config, "attention_chunk_size", None) is not None:
        return "it attends in fixed chunks; choose a model with full or sliding softmax attention only"
    return _missing_input(model_class)


def _missing_input(model_class: type[PreTrainedModel]) -> str | None:
    """The inputs that the adaptation needs, read from the signature."""
    known = inspect.signature(model_class.forward).parameters
    missing = [name for name in ("position_ids", "attention_mask") if name not in known]
    missing += [] if cache_argument(model_class.forward) else ["cache"]
    if not missing:
        return None
    return f"its forward pass takes no {' and no '.join(missing)}; choose a model with position ids and a KV cache"


def _causal_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class that transformers itself has for this config; None if there is none."""
    found: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    return found
