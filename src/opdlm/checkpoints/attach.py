"""The gate of one lossless model on another model: a fine-tune of its base, or its base from another file.

No text changes by it: the model that writes checks every draft with its own weights. A gate that was trained beside
other weights only drafts less well.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from opdlm.checkpoints.adapter_folder import Base
from opdlm.checkpoints.damage import blamed_on
from opdlm.checkpoints.gate_folder import Drafting, read_gate
from opdlm.checkpoints.load import entry_of, finished, generation_settings, load_ar_model, provenance_of, shown_name
from opdlm.checkpoints.new_folder import unused
from opdlm.checkpoints.save import save_checkpoint
from opdlm.checkpoints.source import ENTRY, locate, read_json
from opdlm.checkpoints.trust import remote_code
from opdlm.errors import CheckpointError, UsageError
from opdlm.models.drafting import DraftingModel
from opdlm.models.finite import all_finite
from opdlm.models.gate import Gate
from opdlm.models.identity import identity_check


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
        OutputExistsError: `output` holds something. OpdlmError: what keeps either from being loaded or adapted.
    """
    folder, donor = unused(output), Donor.found(gate)
    with blamed_on(f"generation_config.json of {gate}", "write the model again"):
        generation = generation_settings(GenerationConfig.from_pretrained(donor.place))
    with remote_code(trust_remote_code):
        ar_model, tokenizer = load_ar_model(model)
    if not all_finite(ar_model.parameters()):
        raise CheckpointError(f"{model} has weights that are not finite; use another copy or version of it")
    drafting = donor.on(ar_model, model)
    identity_check(drafting)
    base = Base.of(model, ar_model) if adapter_only else None
    provenance: dict[str, Any] = {**provenance_of(model), "gate from": shown_name(gate)}
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
        """The lossless model of that name. None of its code runs: a gate is numbers.

        Raises:
            UsageError: it has no gate. CheckpointError: it is damaged, or a run that is not finished.
        """
        place = locate(finished(name))
        with blamed_on(f"config.json of {name}", "name a lossless model, which convert --lossless makes"):
            content = read_json(Path(str(cached_file(str(place), "config.json")))).get(ENTRY)
        entry = None if content is None else entry_of(content, name)
        if entry is None or entry.drafting is None:
            raise UsageError(f"{name} has no gate; give a lossless model, which convert --lossless makes")
        return cls(name, place, entry.drafting, entry.base_model)

    def shape(self) -> dict[str, Any]:
        """What the settings of a conversion say of such a gate."""
        return {"window": self.about.window, "window_form": self.about.form, "lora_rank": self.about.rank}

    def on(self, ar_model: PreTrainedModel, name: str | Path) -> DraftingModel:
        """`ar_model`, of that name, with the gate. Raises UsageError where it does not fit."""
        tensors = read_gate(self.place)
        if not all_finite(tensors.values()):
            raise CheckpointError(f"the gate of {self.name} has weights that are not finite; use another checkpoint")
        gate = Gate(ar_model, self.about.rank, self.about.form, self.about.window)
        try:
            gate.load_tensors(tensors)
        except ValueError as error:
            raise UsageError(
                f"the gate of {self.name} does not fit {name} ({error}); a gate fits models with layers of the same "
                f"sizes, such as fine-tunes of {self.base_model or 'its own'}"
            ) from error
        return DraftingModel(ar_model, gate.to(ar_model.device))
