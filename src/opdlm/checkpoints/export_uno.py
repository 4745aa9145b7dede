"""A lossless model's gate as a UNO adapter: the peft folder that SGLang serves beside the unchanged base.

SGLang 0.5.23 (`--speculative-algorithm UNO --uno-lora-path FOLDER`, arXiv 2609.04010) drafts from random ids behind the
last token, causally, with the adapter on these rows alone, and checks by the base: as the `noise` form is trained.
"""

from pathlib import Path

from safetensors.torch import save_file

from opdlm.checkpoints.new_folder import new_folder
from opdlm.errors import MissingExtraError, UsageError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.drafting import DraftingModel

_WRAPPER = "base_model.model."  # what peft's own models have in front of each name


def export_uno(model: BlockDiffusionModel, base: str, folder: str | Path) -> Path:
    """Writes adapter_config.json and adapter_model.safetensors; `base`: name or path that the config gives.

    Raises:
        UsageError: the model has no gate, or one of the `mask` form, which no stock engine knows.
        OutputExistsError: the folder holds something. MissingExtraError: peft is not installed.
    """
    if not isinstance(model, DraftingModel):
        raise UsageError("only a lossless model has a gate to export; convert with --lossless --window-form noise")
    if model.gate.form != "noise":
        raise UsageError(
            "this gate has mask embeddings, which stock engines do not know; convert with --lossless and "
            "--window-form noise"
        )
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtraError("the export needs peft; install it with: pip install 'opdlm[lora]'") from error
    gate = model.gate
    leaves = sorted({name.rpartition(".")[2] for name in gate.names})
    config = LoraConfig(r=gate.rank, lora_alpha=gate.alpha, target_modules=leaves, task_type="CAUSAL_LM")
    config.base_model_name_or_path, config.inference_mode = base, True
    tensors = {f"{_WRAPPER}{name}.weight": value for name, value in gate.tensors().items()}
    with new_folder(folder) as draft:
        config.save_pretrained(str(draft))
        save_file(tensors, draft / "adapter_model.safetensors", metadata={"format": "pt"})
    return Path(folder)
