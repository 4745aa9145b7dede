"""A program of its own: SDAR's modelling file reads an exported folder, in any Python that has torch and transformers.

Run as `python child.py JOB`: the folder JOB has job.json; logits.safetensors and tokens.json are written there. No
import of opdlm: the file wants transformers 4, opdlm transformers 5.
"""

import importlib.util
import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from cycle import Cycle  # beside this file, which a script's folder is
from safetensors.torch import save_file
from torch.nn.functional import scaled_dot_product_attention


def main(folder: Path) -> None:
    """Logits of the job's states, and the tokens that it writes behind the job's prompts."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if importlib.util.find_spec("flash_attn") is None:
        _stand_in_for_flash_attention()
    model = _load(folder / "model", Path(job["folder"]), Path(job["code"]))
    size = job["cycle"]["block_size"]

    @torch.no_grad()
    def logits_of(ids: list[int]) -> torch.Tensor:
        block = torch.arange(len(ids)) // size
        visible = (block[:, None] >= block[None])[None]
        position = torch.arange(len(ids))[None]
        output = model(input_ids=torch.tensor([ids]), attention_mask=visible, position_ids=position, use_cache=False)
        return output.logits[0, -size:].float()

    save_file({"logits": torch.stack([logits_of(ids) for ids in job["states"]])}, folder / "logits.safetensors")
    tokens = [Cycle(**job["cycle"]).write(logits_of, prompt) for prompt in job["prompts"]]
    (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")


def _load(place: Path, exported: Path, code: Path) -> Any:
    """The model, from a folder that holds links to the weights, and the code."""
    place.mkdir()
    for file in exported.iterdir():
        if file.suffix == ".safetensors" or file.name.endswith(".index.json"):
            (place / file.name).symlink_to(file.resolve())
    for file in code.glob("*.py"):
        shutil.copy(file, place)
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    own = code / "config.json"  # such as `fuse_cross_entropy`, which some versions of the file ask for
    config = (json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {}) | config
    config["auto_map"] = {
        "AutoConfig": "configuration_sdar.SDARConfig",
        "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
    }
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        str(place), trust_remote_code=True, torch_dtype=torch.float32, output_loading_info=True
    )
    model, info = loaded
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise ValueError(f"the modelling file has other weights than the folder: {info}")
    return model.eval()


def _stand_in_for_flash_attention() -> None:
    """SDAR's file takes two functions from flash_attn, which needs a GPU; these compute the same in plain torch."""

    def rms_norm_fn(x: torch.Tensor, weight: torch.Tensor, bias: None, eps: float) -> torch.Tensor:
        return (x.float() * (x.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight.float()).to(x.dtype)

    def flash_attn_func(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, softmax_scale: float
    ) -> torch.Tensor:
        q, k, v = (one.transpose(1, 2) for one in (q, k, v))
        mixed = scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale, enable_gqa=True)
        return mixed.transpose(1, 2)

    names = ("flash_attn", "flash_attn.ops", "flash_attn.ops.triton", "flash_attn.ops.triton.layer_norm")
    for name in (*names, "flash_attn.bert_padding"):
        made: Any = ModuleType(name)
        made.__spec__, made.__path__ = ModuleSpec(name, None), []
        made.rms_norm_fn, made.flash_attn_func = rms_norm_fn, flash_attn_func
        sys.modules[name] = made


if __name__ == "__main__":
    main(Path(sys.argv[1]))
