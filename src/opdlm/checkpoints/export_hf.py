"""The AR reading of a converted model as a plain transformers folder: no code of ours, no adapter, no gate.

A lossless model's is its base, unchanged. A student with prediction shifted and context causal reads clean text as its
AR model did, with other weights; its mask token gets a head row of 0, for an AR engine would take it for a token.
"""

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from opdlm.checkpoints.load import ENTRY
from opdlm.checkpoints.new_folder import new_folder
from opdlm.checkpoints.save import save_model
from opdlm.errors import UsageError
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel


def check_ar_reading(model: BlockDiffusionModel) -> None:
    """Raises UsageError where an AR engine would read the model wrongly, or could not load it."""
    if not type(model.model).__module__.startswith("transformers."):
        raise UsageError(
            "this model comes with code of its own, which a plain folder would need; load the converted one with "
            "transformers and trust_remote_code, or serve it with opdlm serve"
        )
    geometry = model.geometry
    if geometry.prediction == "shifted" and (geometry.context == "causal" or geometry.block_size == 1):
        return
    raise UsageError(
        "an AR engine would read this student wrongly: it takes output i for token i + 1 and lets no token see a later "
        f"one, and this was trained with prediction {geometry.prediction} and context {geometry.context}. Use --format "
        "sdar where that holds it, or convert with --prediction shifted --context causal or --lossless"
    )


def export_hf(
    model: BlockDiffusionModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, *, dtype: torch.dtype
) -> Path:
    """Writes the folder, complete or not at all; `dtype`: of its weights.

    Raises:
        OutputExistsError: the folder holds something. UsageError: as `check_ar_reading`.
    """
    check_ar_reading(model)
    with new_folder(folder) as draft:
        save_model(model.model, draft, ar_weights(model, dtype))
        tokenizer.save_pretrained(draft)
        _change(draft / "config.json", {"dtype": str(dtype).removeprefix("torch.")})
        _change(draft / "generation_config.json", {})
    return Path(folder)


def ar_weights(model: BlockDiffusionModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The decoder's weights by their names, tied ones as one tensor."""
    made: dict[int, torch.Tensor] = {}
    head = {id(parameter) for parameter in model.head_parameters()}
    state: dict[str, torch.Tensor] = {}
    for name, value in model.model.state_dict(keep_vars=True).items():
        if id(value) not in made:
            made[id(value)] = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
            if id(value) in head and model.mask_token_id != NO_MASK:
                made[id(value)] = made[id(value)].clone()
                made[id(value)][model.mask_token_id] = 0
        state[name] = made[id(value)]
    return state


def _change(path: Path, entries: dict[str, str]) -> None:
    """Takes our own entries out of a JSON file, and puts `entries` in."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in content.items() if name not in (ENTRY, "auto_map")}
    path.write_text(json.dumps(kept | entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
