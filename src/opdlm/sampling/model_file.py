"""What plain transformers calls in a checkpoint: `from_pretrained`, and `generate` by block diffusion.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    tokens = model.generate(**tokenizer("...", return_tensors="pt"), max_new_tokens=64)

The weights and the forward pass are those of the model class that config.json names; only `generate` is new: the
sampler of opdlm. `checkpoints/bundle.py` makes modeling_opdlm.py of this module and of all that it imports.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.hub import cached_file

from opdlm.checkpoints.defaults import DECODINGS, SETTINGS
from opdlm.core.types import Geometry
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.models.drafting import DraftingModel
from opdlm.models.gate import GATE_FILE, Gate
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Engine
from opdlm.sampling.request import continuation


class BlockDiffusionForCausalLM:
    """What `auto_map` names: `from_pretrained` gives the config's own class, with this file's `generate`."""

    @classmethod
    def from_pretrained(cls, name: str, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`."""
        config = AutoConfig.from_pretrained(name) if config is None else config
        loaded = cls._class_of(config).from_pretrained(name, *args, config=config, **kwargs)
        if (about := config.block_diffusion.get("drafting")) is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.drafting = (_with_gate(model, name, about),)  # in a tuple: not one of the model's own modules
        return loaded

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        """What `AutoModelForCausalLM.from_config` calls: random weights."""
        return cls._class_of(config)._from_config(config, **kwargs)

    @classmethod
    def _class_of(cls, config: Any) -> Any:
        """The config's own class with this file's `generate`."""
        native: Any = AutoModelForCausalLM._model_mapping[type(config)]
        # Named as the native class and as a member of its module: transformers renames some weights on their way from
        # and to disk (GPT-NeoX's head), but not for classes that it takes for custom code.
        names = {"__module__": native.__module__, "__qualname__": native.__qualname__}
        return type(native.__name__, (BlockDiffusionMixin, native), names)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing to register: config.json names this class already. AutoModel calls it."""


class BlockDiffusionMixin:
    """`generate` by block diffusion, for any decoder that takes a 4D attention mask and position ids."""

    def generate(
        self: Any,
        input_ids: torch.Tensor,
        attention_mask: Any = None,
        tokenizer: Any = None,
        batch_size: int = 32,
        **settings: Any,
    ) -> torch.Tensor:
        """Continues every row. What is not given comes from "block_diffusion" in generation_config.json.

        Args:
            input_ids: [B, T]; padding on either side, marked by 0 in `attention_mask` [B, T].
            tokenizer: needed with `stop_strings` alone.
            batch_size: rows decoded at once.
            settings: any of SETTINGS:
                max_new_tokens: most tokens written after the prompt.
                decoding: how many tokens a step unmasks: "KIND[:NUMBER]", as in DECODINGS, or a dict with "kind".
                temperature: 0 takes the most probable token; else tokens are drawn.
                top_k, top_p, min_p: filters of the drawn distribution; 0, 1.0 and 0.0 are off.
                repetition_penalty: above 1, tokens that the text has already become less likely.
                presence_penalty, frequency_penalty: taken off the logits of tokens that the response has already: once,
                    and for each time.
                logit_bias: {token id: what is added to its logit}.
                stop_strings: the response ends with the token that completes one of these strings.
                hold_end: commit a stop token only where all before it is known.
                seed: row i draws from seed + i, whatever else is in the batch.

        Returns:
            [B, T + n]: the input, then the new tokens up to and including the one that stops, then padding.
        """
        if unknown := sorted(set(settings) - set(SETTINGS)):
            raise ValueError(f"generate() of a block-diffusion model does not take {', '.join(unknown)}")
        saved = getattr(self.generation_config, "block_diffusion", None) or {}
        given = {name: value for name, value in settings.items() if value is not None}
        chosen = _checked({**{name: default for name, (default, *_) in SETTINGS.items()}, **saved, **given})
        chosen["decoding"] = _parsed(chosen["decoding"])
        valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [row[mask.bool()].tolist() for row, mask in zip(input_ids, valid, strict=True)]
        if not all(prompts):
            raise ValueError("every row needs at least one token that the attention mask does not hide")
        entry = self.config.block_diffusion
        geometry = Geometry(entry["block_size"], entry["prediction"], entry["context"])
        stops, pad = _as_list(self.generation_config.eos_token_id), self.generation_config.pad_token_id
        pad = (stops or [0])[0] if pad is None else pad
        tokens = SpecialTokens(pad if entry["mask_token_id"] == NO_MASK else entry["mask_token_id"], pad, tuple(stops))
        if (drafting := getattr(self, "drafting", None)) is not None:
            (model,) = drafting
            model.gate.to(self.device, self.dtype)
        else:
            model = BlockDiffusionModel(self, geometry, entry["mask_token_id"])
        seed = chosen.pop("seed")
        requests = [continuation(prompt, seed=seed + row, **chosen) for row, prompt in enumerate(prompts)]
        written = Engine(model, tokens, batch_size, tokenizer).write(requests)
        ends = zip(written.input_ids, written.prompt_length.tolist(), written.length.tolist(), strict=True)
        responses = [ids[begin:end] for ids, begin, end in ends]
        new = torch.nn.utils.rnn.pad_sequence(responses, batch_first=True, padding_value=tokens.pad_token_id)
        return torch.cat([input_ids, new.to(input_ids.dtype)], 1)

    def save_pretrained(self: Any, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """As usual; this file goes along."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        shutil.copyfile(__file__, Path(save_directory) / "modeling_opdlm.py")
        for model in getattr(self, "drafting", ()):
            save_file(model.gate.tensors(), Path(save_directory) / GATE_FILE, metadata={"format": "pt"})


def _with_gate(base: Any, name: str, about: dict[str, Any]) -> DraftingModel:
    """A lossless model: the base with the gate that stands beside its weights."""
    gate = Gate(base, about["rank"], about["form"], about["window"])
    gate.load_tensors(load_file(str(cached_file(name, GATE_FILE))))
    return DraftingModel(base, gate)


def _parsed(decoding: str | dict[str, Any]) -> dict[str, Any]:
    """The kind, and each of its numbers."""
    given: dict[str, Any] = {"kind": decoding} if isinstance(decoding, str) else dict(decoding)
    kind, _, number = given.pop("kind").partition(":")
    if kind not in DECODINGS:
        raise ValueError(f"unknown decoding {kind!r}; choose {', '.join(DECODINGS)}")
    known = DECODINGS[kind]
    if number:  # `verified:auto` has a word there
        first = {number: True} if number == "auto" and "auto" in known else {next(iter(known)): float(number)}
        given = {**first, **given}
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"the decoding {kind} does not take {', '.join(unknown)}")
    values = {name: given.get(name, default) for name, (default, *_) in known.items()}
    for name, (_, least, most) in known.items():
        _check(name, values[name], least, most)
    return {"kind": kind, **values}


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """The same, if all numbers are in their ranges."""
    for name, (default, least, most) in SETTINGS.items():
        if isinstance(default, int | float):
            _check(name, settings[name], least, most)
    # JSON makes strings of token ids, and one stop string may come alone.
    strings = settings["stop_strings"]
    settings["stop_strings"] = (strings,) if isinstance(strings, str) else tuple(strings)
    settings["logit_bias"] = {int(token): float(value) for token, value in settings["logit_bias"].items()}
    for value in settings["logit_bias"].values():
        _check("logit_bias", value, -1e30, 1e30)  # what float32 can add to a logit
    return settings


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        limits = f"at least {least}" if value < least else f"at most {most}"
        raise ValueError(f"{name} is {value}, and must be {limits}")


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
