"""A converted model as the SDAR folder (`SDARForCausalLM`) that stock SGLang and LMDeploy load.

What these engines read and demand, in SGLang 0.5.23 (`srt/dllm/config.py`, `srt/models/sdar.py`) and LMDeploy 0.18.0
(`pytorch/configurations/sdar.py`, `pytorch/models/sdar.py`):

- Qwen3's weights under Qwen3's names; the head written apart, for SGLang's loader fails on a tied one;
- the mask token 151669, which no setting changes;
- output i predicts token i, and finished blocks see themselves in both directions;
- `rope_theta` (SGLang) and `rope_parameters` (LMDeploy), which only a config of model type "sdar" keeps side by side.

They take the mask token for one that can be written. Its row of the head is 0: the logit is 0, below that of any token
that a trained model would write.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlm.checkpoints.new_folder import new_folder
from opdlm.errors import UnsupportedModelError, UsageError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.drafting import DraftingModel
from opdlm.models.parts import input_embedding, lm_head
from opdlm.models.tokens import special_tokens

MASK_ID = 151669
"""The token that both engines take for the mask."""
MASK_TOKEN = "<|MASK|>"  # its name in SDAR's own tokenizers
SERVER_FILE = "sglang.yaml"
"""What `--dllm-algorithm-config` of SGLang gets."""
_CONFIG_CLASS = '''\
"""The config of an SDAR folder, for engines that read it with transformers 4 or 5 (--trust-remote-code)."""

from transformers import PretrainedConfig


class SDARConfig(PretrainedConfig):
    """Its values are those of config.json; `rope_theta` stays an attribute, which SGLang reads."""

    model_type = "sdar"

    def __init__(self, rope_theta=10000.0, **values):
        super().__init__(**values)
        self.rope_theta = rope_theta
        if not hasattr(self, "rope_scaling"):
            self.rope_scaling = None
'''
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_bias",
)
"""Fields that have the same name and meaning in Qwen3's config and in SDAR's."""


def check_sdar(model: BlockDiffusionModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether an SDAR folder can hold it.

    Raises:
        UsageError: another geometry was trained than the engines decode in.
        UnsupportedModelError: another architecture or vocabulary than they read.
    """
    if isinstance(model, DraftingModel):
        raise UsageError(
            "a lossless model has no mask token: its gate drafts and its base verifies, which the SDAR format does not "
            "know; use --format uno (with --window-form noise), or --format hf for the base alone"
        )
    if (misfits := _geometry_misfits(model)) != []:
        raise UsageError(
            f"engines of the SDAR format read another geometry: {'; '.join(misfits)}. Convert again with --prediction "
            "same --context block, or serve this model with opdlm serve"
        )
    if (misfits := _architecture_misfits(model.model) + _vocabulary_misfits(model, tokenizer)) != []:
        raise UnsupportedModelError(
            f"the SDAR format cannot hold this model: {'; '.join(misfits)}. Convert a Qwen3 model (Qwen3-0.6B to 32B), "
            "or serve this one with opdlm serve"
        )


def _geometry_misfits(model: BlockDiffusionModel) -> list[str]:
    geometry, misfits = model.geometry, list[str]()
    if geometry.prediction != "same":
        misfits.append("output i predicts token i, this model's predicts token i + 1 (prediction shifted)")
    if geometry.context != "block" and geometry.block_size > 1:
        misfits.append("finished blocks see themselves in both directions, this model's are read causally")
    return misfits


def _architecture_misfits(model: PreTrainedModel) -> list[str]:
    config, misfits = model.config, list[str]()
    if config.model_type != "qwen3":
        return [f"its weights are Qwen3's, with norms of queries and keys, and this is a {config.model_type} model"]
    if config.hidden_act != "silu":
        misfits.append(f"its MLP has SiLU, this model {config.hidden_act}")
    if "sliding_attention" in (config.layer_types or ()):
        misfits.append("all of its layers attend to everything, and some of this model have a sliding window")
    if (kind := config.rope_parameters.get("rope_type", "default")) != "default":
        misfits.append(f"positions stretched by {kind} were not checked against its engines")
    return misfits


def _vocabulary_misfits(model: BlockDiffusionModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    rows = input_embedding(model.model).weight.shape[0]
    if rows <= MASK_ID:
        return [f"its mask token is {MASK_ID}, and the embedding has {rows} rows"]
    if model.mask_token_id == MASK_ID:
        return []
    if len(tokenizer) > MASK_ID:
        taken = tokenizer.convert_ids_to_tokens(MASK_ID)
        return [f"its mask token is {MASK_ID}, which is {taken!r} in this vocabulary"]
    if max(tokenizer.get_vocab().values()) >= len(tokenizer):
        return [f"its mask token is {MASK_ID}, and the vocabulary has gaps, so that no token can be put there"]
    return []


def export_sdar(
    model: BlockDiffusionModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    dtype: torch.dtype,
    threshold: float,
) -> Path:
    """Writes the folder, complete or not at all.

    Args:
        dtype: of the weights in it. threshold: of SGLang's LowConfidence, which commits as decoding `dynamic` does.

    Raises:
        OutputExistsError: the folder holds something. Otherwise as `check_sdar`.
    """
    check_sdar(model, tokenizer)
    with new_folder(folder) as draft:
        save_torch_state_dict(_weights(model, dtype), draft, metadata={"format": "pt"})
        _write_json(draft / "config.json", _config(model, tokenizer, dtype))
        (draft / "configuration_sdar.py").write_text(_CONFIG_CLASS, encoding="utf-8")
        _with_mask(model, tokenizer).save_pretrained(draft)
        tokens = special_tokens(model.model, tokenizer)
        stops = list(tokens.stop_token_ids) or None
        _write_json(draft / "generation_config.json", {"eos_token_id": stops, "pad_token_id": tokens.pad_token_id})
        server = f"threshold: {threshold}\nblock_size: {model.geometry.block_size}\n"
        (draft / SERVER_FILE).write_text(server, encoding="utf-8")
    return Path(folder)


def _weights(model: BlockDiffusionModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Under Qwen3's names, with a head of its own, and the mask token where the engines look for it."""
    decoder, mask = model.model, model.mask_token_id
    state = {name: value.detach().to("cpu", dtype) for name, value in decoder.named_parameters()}
    embedding = input_embedding(decoder).weight.detach().to("cpu", dtype).clone()
    embedding[MASK_ID] = embedding[mask]
    head = lm_head(decoder).get_parameter("weight").detach().to("cpu", dtype).clone()
    head[[MASK_ID, mask]] = 0
    return state | {"model.embed_tokens.weight": embedding, "lm_head.weight": head}


def _config(model: BlockDiffusionModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> dict[str, Any]:
    config, name = model.model.config, str(dtype).removeprefix("torch.")
    tokens = special_tokens(model.model, tokenizer)
    theta = float(config.rope_parameters["rope_theta"])
    return {
        "architectures": ["SDARForCausalLM"],
        "model_type": "sdar",
        "auto_map": {"AutoConfig": "configuration_sdar.SDARConfig"},
        **{name: getattr(config, name) for name in _SAME},
        "tie_word_embeddings": False,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config.num_hidden_layers,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokens.stop_token_ids[0] if tokens.stop_token_ids else None,
        "pad_token_id": tokens.pad_token_id,
        "mask_token_id": MASK_ID,
        "block_size": model.geometry.block_size,
        "use_cache": True,
        "dtype": name,
        "torch_dtype": name,  # what transformers 4 reads
    }


def _with_mask(model: BlockDiffusionModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, whose mask token has the engines' id; tokens that nobody writes fill what lies before it."""
    if model.mask_token_id == MASK_ID:
        return tokenizer
    made = copy.deepcopy(tokenizer)
    unused = [AddedToken(f"<|unused_{index}|>", special=True) for index in range(len(made), MASK_ID)]
    made.add_tokens(unused)  # type: ignore[arg-type]
    made.add_special_tokens({"mask_token": MASK_TOKEN})
    if made.mask_token_id != MASK_ID:
        raise UnsupportedModelError(
            f"the tokenizer gives the mask token the id {made.mask_token_id}, and the engines demand {MASK_ID}; "
            "convert a Qwen3 model with its own tokenizer"
        )
    return made


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
