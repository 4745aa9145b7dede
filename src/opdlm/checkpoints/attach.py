"""The gate of one lossless model on another model: a fine-tune of its base, or its base from another file.

No text changes by it: the model that writes checks every draft with its own weights. A gate that was trained beside
other weights only drafts less well.
"""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from opdlm.checkpoints.adapter_folder import Base, weights_hash
from opdlm.checkpoints.damage import blamed_on
from opdlm.checkpoints.gate_folder import read_gate
from opdlm.checkpoints.load import Entry, entry_of, generation_settings, is_checkpoint, load_ar_model, provenance_of
from opdlm.checkpoints.new_folder import unused
from opdlm.checkpoints.save import save_checkpoint
from opdlm.checkpoints.source import locate, read_config
from opdlm.checkpoints.trust import remote_code
from opdlm.errors import UsageError
from opdlm.models.adapter import largest_rank
from opdlm.models.drafting import DraftingModel
from opdlm.models.gate import Gate


def attach(
    gate: str | Path,
    model: str | Path,
    output: str | Path,
    *,
    adapter_only: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Make a lossless model of an AR model and the gate of another lossless model, without any training.

    Args:
        gate: folder of a lossless model, of a gate alone, or of the run that made it; or a hub name.
        model: the AR model: folder, GGUF file or hub name.
        output: new or empty folder.
        adapter_only: writes the gate alone, a few MB, with the name of `model` and the hash of its weights.
        trust_remote_code: run code that the AR model came with.

    Returns:
        `output`.

    Raises:
        UsageError: `gate` is no lossless model, or its layers are not of the sizes of `model`.
        OutputExistsError: `output` holds something. OpdlmError: what keeps either from being loaded.
    """
    folder = unused(output)
    place = locate(Path(gate) / "model" if is_checkpoint(Path(gate) / "model") else gate)
    entry = entry_of(read_config(place), gate)
    if entry.drafting is None:
        raise UsageError(f"{gate} has no gate; give a lossless model, which convert --lossless makes")
    with blamed_on(f"generation_config.json of {gate}", "write the model again"):
        generation = generation_settings(GenerationConfig.from_pretrained(place))
    with remote_code(trust_remote_code):
        ar_model, tokenizer = load_ar_model(model)
    named = Path(model).resolve() if Path(model).exists() else model
    base = Base(str(named), weights_hash(ar_model)) if adapter_only else None
    drafting = _drafting(ar_model, entry, place, f"the gate of {gate} does not fit {model}")
    provenance: dict[str, Any] = {**provenance_of(model), "gate trained beside": entry.base_model or "another model"}
    save_checkpoint(drafting, tokenizer, folder, generation=generation, provenance=provenance, base=base)
    return Path(output)


def _drafting(ar_model: PreTrainedModel, entry: Entry, place: str | Path, misfit: str) -> DraftingModel:
    """`ar_model` with the gate of `place`. Raises UsageError: what differs, behind `misfit`."""
    about, tensors = entry.drafting, read_gate(place)
    assert about is not None
    fix = f"a gate fits models whose layers have the same sizes, such as fine-tunes of {entry.base_model or 'its own'}"
    if about.rank > (most := largest_rank(ar_model)):
        raise UsageError(f"{misfit}: its rank {about.rank} is above {most}, that of the smallest layer; {fix}")
    gate = Gate(ar_model, about.rank, about.form, about.window)
    try:
        gate.load_tensors(tensors)
    except ValueError as error:
        raise UsageError(f"{misfit} ({error}); {fix}") from error
    return DraftingModel(ar_model, gate)
