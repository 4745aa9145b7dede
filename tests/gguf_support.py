"""Tiny GGUF files, written in code from tiny models: what llama.cpp's converter does, for a few architectures."""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from support import CHAT_TEMPLATE, tiny_model

SIZES = {"vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 8}
GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
SPECIALS = ("<pad>", "<s>", "</s>")


def gguf_model(name: str = "llama") -> PreTrainedModel:
    """A tiny model whose sizes a GGUF file can state."""
    sizes = SIZES | ({} if name != "qwen3" else {"head_dim": 128})  # the default, which the file cannot change
    if name == "gemma3":  # of these a file states nothing, so they have to be the defaults
        sizes |= {"query_pre_attn_scalar": 256, "final_logit_softcapping": None, "sliding_window": 7}
        sizes |= {"layer_types": ["sliding_attention"] * 3}
    return tiny_model(name, **sizes)


def vocabulary() -> list[str]:
    """Special tokens, the 256 bytes as byte-level BPE writes them, one merged pair, and unused ones."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    used = [*SPECIALS, *bytes_to_unicode().values(), "th"]
    return used + [f"[PAD{index}]" for index in range(len(used), SIZES["vocab_size"])]


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    name: str = "llama",
    quantisation: str = "F32",
    leave_out: str = "",
    **more: object,
) -> Path:
    """The model as a GGUF file. `leave_out`: a tensor that is not written. `more`: further tensors, or strings."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    writer = GGUFWriter(path, name)
    _write_settings(writer, model)
    _write_tokenizer(writer)
    for key, value in more.items():
        if isinstance(value, str):
            writer.add_string(key.replace("__", "."), value)
        elif isinstance(value, int):
            writer.add_uint16(key.replace("__", "."), value)
        else:
            writer.add_tensor(key.replace("__", "."), value)
    kind = GGMLQuantizationType[quantisation]
    for tensor_name, tensor in _tensors(model, name).items():
        if tensor_name == leave_out:
            continue
        data = tensor.detach().float().numpy()
        if kind is GGMLQuantizationType.F32 or data.ndim == 1:
            writer.add_tensor(tensor_name, data.astype(np.float32))
        else:
            writer.add_tensor(tensor_name, quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_settings(writer, model: PreTrainedModel) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(_theta(config))
    writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 8)
    writer.add_rope_dimension_count(8)
    if config.model_type.startswith("gemma3"):
        writer.add_sliding_window(config.sliding_window)


def _theta(config) -> float:
    about = config.rope_parameters
    return float(about["rope_theta"] if "rope_theta" in about else about["full_attention"]["rope_theta"])


def _write_tokenizer(writer) -> None:
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS or token.startswith("[PAD") else 1 for token in tokens])
    writer.add_token_merges(["t h"])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(model: PreTrainedModel, name: str) -> dict[str, torch.Tensor]:
    """Under the names of GGUF, as llama.cpp has them: its rotary halves interleaved, Gemma's norms with their 1."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, value in MODEL_ARCH_NAMES.items() if value == name)
    names = get_tensor_name_map(arch, model.config.num_hidden_layers)
    found = {}
    for full, tensor in model.state_dict().items():
        stem, _, kind = full.rpartition(".")
        target = names.get_name(stem)
        if target is None or (full == "lm_head.weight" and model.config.tie_word_embeddings):
            continue
        if name == "llama" and ("q_proj" in full or "k_proj" in full):
            heads = model.config.num_attention_heads if "q_proj" in full else model.config.num_key_value_heads
            tensor = tensor.view(heads, 2, -1, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)
        if name == "gemma3" and "norm" in full:
            tensor = tensor + 1
        found[f"{target}.{kind}"] = tensor
    return found
