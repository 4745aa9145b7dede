"""The README.md of a checkpoint: where it comes from, how to use it, what was measured."""

from typing import Any

from opdlm.config import GenerationSettings
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.drafting import DraftingModel
from opdlm.models.gate import Gate

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [block-diffusion, opdlm]
{base_line}---

# {title}

{what} Made with opdlm {version}.

| | |
|---|---|
{rows}

{usage}
"""
_BLOCKS = """\
A block-diffusion language model: it writes blocks of {block_size} tokens, several tokens a forward pass. Made from an
autoregressive model by on-policy distillation (arXiv 2606.06712)."""
_LOSSLESS = """\
The autoregressive model itself, its weights unchanged, with a gate that drafts up to {window} tokens a forward pass.
The model checks every draft: what it writes is its own text, token for token, in fewer forward passes."""
_FOLDER_USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
messages = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=64)
print(tokenizer.decode(output[0]))
```

A tokenizer without a chat template takes plain text: `tokenizer("...", return_tensors="pt")`.
With opdlm installed: `opdlm generate FOLDER "..." --watch`."""
_ADAPTER_USAGE = """\
This is an adapter alone. It needs opdlm, peft and its base, whose weights are checked by their hash:
`opdlm generate FOLDER "..." --watch`, or `opdlm.load(FOLDER)`. adapter_config.json says where the base is."""

_GATE_USAGE = """\
This is a gate alone. It needs opdlm and its base, whose weights are checked by their hash:
`opdlm generate FOLDER "..." --watch`, or `opdlm.load(FOLDER)`. config.json says where the base is."""


def model_card(
    model: BlockDiffusionModel, generation: GenerationSettings, provenance: dict[str, Any], *, adapter: bool = False
) -> str:
    """Markdown. `provenance`: "base_model" and measured numbers by name; only what the caller gives is claimed.

    `adapter`: the folder holds an adapter alone.
    """
    from opdlm import __version__

    base = provenance.get("base_model")
    geometry, drafts = model.geometry, isinstance(model, DraftingModel)
    decoding = ", ".join(f"{key} {value}" for key, value in generation.decoding.model_dump().items() if key != "kind")
    facts = {
        **provenance,
        **(_of_gate(model.gate) if isinstance(model, DraftingModel) else _of_blocks(model)),
        "default decoding": f"{generation.decoding.kind} ({decoding})",
    }
    return _CARD.format(
        base_line=f"base_model: {base}\n" if base and "/" in base else "",  # metadata: hub names only
        title=f"{base or 'Model'} {'without loss, in fewer forwards' if drafts else 'as a block-diffusion model'}",
        what=_LOSSLESS.format(window=model.window) if drafts else _BLOCKS.format(block_size=geometry.block_size),
        version=__version__,
        usage=(_GATE_USAGE if drafts else _ADAPTER_USAGE) if adapter else _FOLDER_USAGE,
        rows="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
    )


def _of_blocks(model: BlockDiffusionModel) -> dict[str, Any]:
    geometry = model.geometry
    return {
        "block size": f"{geometry.block_size} tokens",
        "prediction, context": f"{geometry.prediction}, {geometry.context}",
        "mask token id": model.mask_token_id,
    }


def _of_gate(gate: Gate) -> dict[str, Any]:
    weights = sum(parameter.numel() for parameter in gate.parameters())
    return {"window": f"{gate.window} drafts, {gate.form} form", "gate": f"rank {gate.rank}, {weights:,} weights"}
