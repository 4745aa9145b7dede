"""The gate of one lossless model on another model: a fine-tune of its base, or its base from another file.

No text changes by it: the model that writes checks every draft with its own weights. A gate that was trained beside
other weights only drafts less well.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from opdlm.checkpoints.adapter_folder import Base, weights_hash
from opdlm.checkpoints.damage import blamed_on
from opdlm.checkpoints.gate_folder import Drafting, read_gate
from opdlm.checkpoints.load import entry_of, generation_settings, is_checkpoint, load_ar_model, provenance_of
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
    folder, donor = unused(output), Donor.found(gate)
    with blamed_on(f"generation_config.json of {gate}", "write the model again"):
        generation = generation_settings(GenerationConfig.from_pretrained(donor.place))
    with remote_code(trust_remote_code):
        ar_model, tokenizer = load_ar_model(model)
    named = Path(model).resolve() if Path(model).exists() else model
    base = Base(str(named), weights_hash(ar_model)) if adapter_only else None
    drafting = donor.on(ar_model, model)
    provenance: dict[str, Any] = {**provenance_of(model), "gate trained beside": donor.base_model or "another model"}
    save_checkpoint(drafting, tokenizer, folder, generation=generation, provenance=provenance, base=base)
    return Path(output)


@dataclass(frozen=True)
class Donor:
    """A lossless model whose gate another model takes.

    Attributes:
        name: as the user gave it. place: where its files are, a folder or hub name.
        about: form, window and rank of the gate. base_model: what it was trained beside, where that is known.
    """

    name: str | Path
    place: str | Path
    about: Drafting
    base_model: str | None

    @classmethod
    def found(cls, name: str | Path) -> "Donor":
        """The lossless model of that name. Raises UsageError where it has no gate, CheckpointError where it is none."""
        place = locate(Path(name) / "model" if is_checkpoint(Path(name) / "model") else name)
        entry = entry_of(read_config(place), name)
        if entry.drafting is None:
            raise UsageError(f"{name} has no gate; give a lossless model, which convert --lossless makes")
        return cls(name, place, entry.drafting, entry.base_model)

    def on(self, ar_model: PreTrainedModel, name: str | Path) -> DraftingModel:
        """`ar_model`, of that name, with the gate. Raises UsageError where it does not fit."""
        about, tensors = self.about, read_gate(self.place)
        misfit = f"the gate of {self.name} does not fit {name}"
        fix = f"a gate fits models with layers of the same sizes, such as fine-tunes of {self.base_model or 'its own'}"
        if about.rank > (most := largest_rank(ar_model)):
            raise UsageError(f"{misfit}: its rank {about.rank} is above {most}, that of the smallest layer; {fix}")
        gate = Gate(ar_model, about.rank, about.form, about.window)
        try:
            gate.load_tensors(tensors)
        except ValueError as error:
            raise UsageError(f"{misfit} ({error}); {fix}") from error
        return DraftingModel(ar_model, gate.to(ar_model.device))
