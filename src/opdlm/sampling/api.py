"""What users call: `load` a converted model, `generate` text or token ids, watch the drafts.

Names follow the text-diffusion API of transformers (`tokens_per_forward`, a streamer with `put_draft`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from opdlm.config import GenerationSettings, settings_from
from opdlm.core.types import Rollout
from opdlm.errors import ContextLengthError, UsageError
from opdlm.models.adapt import BlockDiffusionModel
from opdlm.models.checkpoint import generation_settings, is_checkpoint, load_checkpoint
from opdlm.models.devices import pick_device
from opdlm.models.tokens import encode_prompt, special_tokens
from opdlm.sampling.engine import Engine, Observer, Round


class DraftStreamer(Protocol):
    """Receives a row's text while it is written (one prompt at a time, as streamers of transformers do)."""

    def put_draft(self, ids: torch.Tensor) -> None:
        """[L] response ids as they are now, the mask token where nothing is fixed."""
        ...

    def put(self, ids: torch.Tensor) -> None:
        """[L] final response ids."""
        ...

    def end(self) -> None:
        """The response is complete."""
        ...


@dataclass(frozen=True)
class GenerationOutput:
    """Attributes:
    sequences: [B, T] int64, prompt and response, padded on the right.
    tokens_per_forward: response tokens divided by model forwards, over all rows; the prompt's pass is not counted.
    rollout: the record with lengths and commit rounds.
    """

    sequences: torch.Tensor
    tokens_per_forward: float
    rollout: Rollout


class DiffusionLM:
    """A converted model with its tokenizer: `model.generate(input_ids)` or `model.write("text")`."""

    def __init__(
        self, model: BlockDiffusionModel, tokenizer: PreTrainedTokenizerBase, defaults: GenerationSettings
    ) -> None:
        self.model, self.tokenizer, self.defaults = model, tokenizer, defaults
        self.tokens = special_tokens(model.model, tokenizer)

    def generate(
        self,
        input_ids: torch.Tensor | Sequence[Sequence[int]],
        attention_mask: torch.Tensor | None = None,
        streamer: DraftStreamer | None = None,
        batch_size: int = 32,
        **settings: Any,
    ) -> GenerationOutput:
        """Continue each row.

        Args:
            input_ids: [B, P] int64 (with `attention_mask` where rows are padded, on either side), or lists of ids.
            streamer: for a single row: sees every draft.
            batch_size: rows decoded at once.
            settings: fields of GenerationSettings, in place of the model's defaults.
        """
        prompts = _rows(input_ids, attention_mask)
        if streamer is not None and len(prompts) != 1:
            raise UsageError("a streamer shows one row; give one prompt, or leave the streamer out")
        chosen = settings_from(GenerationSettings, {**self.defaults.model_dump(), **settings})
        check_context(prompts, chosen.max_new_tokens, self.model.max_length, self.model.geometry.block_size)
        observer = None if streamer is None else _drafts(streamer, len(prompts[0]), chosen.max_new_tokens)
        engine = Engine(self.model, self.tokens, chosen, batch_size, observer)
        rollout = engine.generate(prompts)
        if streamer is not None:
            streamer.put(rollout.input_ids[0, len(prompts[0]) : int(rollout.length[0])])
            streamer.end()
        return _output(rollout, self.tokens.pad_token_id)

    def write(self, prompt: str | list[dict[str, str]], **settings: Any) -> str:
        """The response to one prompt (or conversation), as text."""
        output = self.generate([encode_prompt(self.tokenizer, prompt)], **settings)
        return self.decode(output)[0]

    def decode(self, output: GenerationOutput) -> list[str]:
        """The responses as text, without special tokens."""
        r = output.rollout
        ends = zip(r.prompt_length.tolist(), r.length.tolist(), strict=True)
        ids = [r.input_ids[i, begin:end].tolist() for i, (begin, end) in enumerate(ends)]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)


def load(path: str | Path, device: str = "auto", dtype: torch.dtype = torch.float32) -> DiffusionLM:
    """Load a converted model: a checkpoint folder, the folder of a run, or a hub name."""
    folder = Path(path) / "model" if is_checkpoint(Path(path) / "model") else path
    model, tokenizer = load_checkpoint(folder, device=pick_device(device), dtype=dtype)
    return DiffusionLM(model, tokenizer, generation_settings(model.model))


def check_context(prompts: Sequence[Sequence[int]], max_new_tokens: int, limit: int | None, block_size: int) -> None:
    """Raises ContextLengthError if the longest prompt leaves no room for the response, in whole blocks."""
    longest = max(map(len, prompts))
    needed = -(-(longest + max_new_tokens) // block_size) * block_size
    if limit is not None and needed > limit:
        raise ContextLengthError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit into the model's context "
            f"of {limit}; shorten the prompt or lower --max-new-tokens"
        )


def _rows(input_ids: torch.Tensor | Sequence[Sequence[int]], mask: torch.Tensor | None) -> list[list[int]]:
    if not isinstance(input_ids, torch.Tensor):
        rows = [list(row) for row in input_ids]
    elif mask is None:
        rows = [row.tolist() for row in input_ids]
    else:
        rows = [ids[keep.bool()].tolist() for ids, keep in zip(input_ids, mask, strict=True)]
    if not rows or not all(rows):
        raise UsageError("every prompt needs at least one token; add a text or a beginning-of-sequence token")
    return rows


def _drafts(streamer: DraftStreamer, prompt_length: int, max_new_tokens: int) -> Observer:
    def show(seen: Round) -> None:
        end = min(int(seen.start[0]) + seen.committed.shape[1], prompt_length + max_new_tokens)
        streamer.put_draft(seen.input_ids[0, prompt_length:end].clone())

    return show


def _output(rollout: Rollout, pad_token_id: int) -> GenerationOutput:
    width = int(rollout.length.max())
    behind = torch.arange(width, device=rollout.length.device) >= rollout.length[:, None]
    sequences = rollout.input_ids[:, :width].masked_fill(behind, pad_token_id)
    tokens = int((rollout.length - rollout.prompt_length).sum())
    return GenerationOutput(sequences, tokens / max(1, int(rollout.forwards.sum())), rollout)
