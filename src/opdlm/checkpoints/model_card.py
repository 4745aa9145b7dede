"""The README.md of a checkpoint: where it comes from, how to use it, what was measured."""

from typing import Any

from opdlm.config import GenerationSettings
from opdlm.models.block_diffusion import BlockDiffusionModel

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [block-diffusion, opdlm]
{base_line}---

# {title}

A block-diffusion language model: it writes blocks of {block_size} tokens, several tokens a forward pass. Made from an
autoregressive model by on-policy distillation (arXiv 2606.06712) with opdlm {version}.

| | |
|---|---|
{rows}

{usage}
"""
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


def model_card(
    model: BlockDiffusionModel, generation: GenerationSettings, provenance: dict[str, Any], *, adapter: bool = False
) -> str:
    """Markdown. `provenance`: "base_model" and measured numbers by name; only what the caller gives is claimed.

    `adapter`: the folder holds an adapter alone.
    """
    from opdlm import __version__

    base = provenance.get("base_model")
    geometry = model.geometry
    decoding = ", ".join(f"{key} {value}" for key, value in generation.decoding.model_dump().items() if key != "kind")
    facts = {
        **provenance,
        "block size": f"{geometry.block_size} tokens",
        "prediction, context": f"{geometry.prediction}, {geometry.context}",
        "mask token id": model.mask_token_id,
        "default decoding": f"{generation.decoding.kind} ({decoding})",
    }
    return _CARD.format(
        base_line=f"base_model: {base}\n" if base and "/" in base else "",  # metadata: hub names only
        title=f"{base} as a block-diffusion model" if base else "Block-diffusion model",
        block_size=geometry.block_size,
        version=__version__,
        usage=_ADAPTER_USAGE if adapter else _FOLDER_USAGE,
        rows="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
    )
