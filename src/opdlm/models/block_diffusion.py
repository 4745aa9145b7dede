"""Any Hugging Face decoder as a block-diffusion model: our masks and position ids, its own code and weights.

Shape letters: B rows, Q queries, K keys, T positions, V vocabulary, D hidden size.

No model file is copied. A 4D mask given to a decoder of transformers >= 5 reaches its attention layers as it is
(`masking_utils._preprocess_mask_arguments`); a decoder that mixes full and sliding layers takes a dict with a mask for
each kind. Keys and values of a cached pass go through `KVCache`, which the decoder takes for any other cache.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from opdlm.core.layout import PADDING, Attention
from opdlm.core.types import Geometry
from opdlm.errors import UnsupportedModelError, UsageError
from opdlm.models.cache import FrozenPrefix, KVCache
from opdlm.models.pace import Pace, Turn
from opdlm.models.parts import cache_argument, lm_head
from opdlm.models.verdict import sliding_windows

NO_MASK = -1
"""The mask token of a model that has none, such as one that drafts."""
NEVER_SAMPLED = -1e30
"""Logit of the mask token: finite in float32, and of probability exactly 0 after a softmax."""

_MOST_COMPILED = 64  # variants of a forward, one for each width of its windows
_MASKED_ATTENTION = ("sdpa", "eager", "flex_attention")


def _pace(block_size: int) -> Pace:
    """Of drafts that end with the block, made by windows that are blocks."""
    return Pace(block_size - 1, width=block_size, rooms=range(block_size))


class BlockDiffusionModel(nn.Module):
    """A decoder that attends as `Attention` says instead of from left to right.

    The decoder itself, `.model`, keeps its class, its parameters and their names. Always in eval mode as far as dropout
    and router noise go: a conversion compares two distributions, and noise in one of them is part of no method here.
    `train()` therefore only switches the recomputation of activations on, after `checkpoint_activations()`.

    Attributes:
        model: the decoder with its language-model head.
        geometry: blocks, prediction and context that this model was or will be trained for.
        mask_token_id: the id that stands for "not yet known"; NO_MASK for a model without one.
        cache_argument: what the decoder calls the argument that takes a KV cache.
        pace: what was measured of its drafts. turn: held while `pace` is asked or told: threads that write share it.
    """

    def __init__(self, model: PreTrainedModel, geometry: Geometry, mask_token_id: int):
        """Switches `model` to eval mode; UnsupportedModelError if its attention implementation takes no mask."""
        super().__init__()
        implementation = model.config._attn_implementation
        if implementation not in _MASKED_ATTENTION:
            raise UnsupportedModelError(
                f"attention implementation {implementation!r} takes no mask; load the model with "
                "attn_implementation='sdpa', 'eager' or 'flex_attention'"
            )
        self.model = model
        self.geometry = geometry
        self.mask_token_id = mask_token_id
        self._windows = sliding_windows(model.config)
        self.cache_argument = cache_argument(model.forward) or ""
        self.pace, self.turn = _pace(geometry.block_size), Turn()
        self._compiled: Callable | None = None
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def max_length(self) -> int | None:
        """Most positions of prompt and answer; None where the architecture sets no limit.

        Rotary frequencies that change with the length of the text ("longrope", "dynamic") would turn cached keys stale,
        so such a model is used up to the length at which they begin to change.
        """
        config = self.model.config
        limit = getattr(config, "max_position_embeddings", None)
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") in ("longrope", "dynamic"):
            return rope.get("original_max_position_embeddings") or limit
        return limit

    @property
    def packing_capacity(self) -> float:
        """Tokens that a packed sequence should hold: all under FlexAttention, which skips what is masked; with a dense
        mask, whose cost is the square of the sequence, only as many as the longest document (0).
        """
        return math.inf if self.model.config._attn_implementation == "flex_attention" else 0

    def at(self, geometry: Geometry) -> "BlockDiffusionModel":
        """The same decoder (shared, not copied) with another geometry."""
        view = BlockDiffusionModel(self.model, geometry, self.mask_token_id)
        return view.train(self.training)

    def compile_decoding(self) -> None:
        """Runs cached passes through `torch.compile`, for all lengths: slow the first two times, then faster.

        Takes a C++ compiler on a CPU (UsageError without one), Triton on a GPU.
        """
        compilers = filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++"))
        if self.device.type == "cpu" and not any(map(shutil.which, compilers)):
            raise UsageError("compiling needs a C++ compiler, and there is none; install g++, or decode without it")
        # A window's width is a constant to the compiler, so each is compiled by itself. Torch before 2.13 takes no
        # limit of ours: there widths beyond the eighth run as if they were not compiled.
        options: dict[str, Any] = {"dynamic": True}
        if "recompile_limit" in signature(torch.compile).parameters:
            options["recompile_limit"] = _MOST_COMPILED
        self._compiled = torch.compile(self.model.base_model.forward, **options)
        self.pace.sizes = ()  # `auto` chooses from few windows: each is compiled

    def checkpoint_activations(self, enabled: bool = True) -> None:
        """Trades time for memory: while training, each layer recomputes its activations in the backward pass."""
        # These methods were renamed in transformers 5.2x; the old names go in v6.
        word = "enable" if enabled else "disable"
        new, old = f"activation_checkpointing_{word}", f"gradient_checkpointing_{word}"
        switch = getattr(self.model, new, None) or getattr(self.model, old)
        switch({"use_reentrant": False}) if enabled else switch()
        self.train(self.training)

    def train(self, mode: bool = True) -> "BlockDiffusionModel":
        """Eval mode throughout; with `mode`, the layers of `checkpoint_activations` recompute."""
        self.training = mode
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = mode
        return self

    def hidden(
        self, input_ids: torch.Tensor, attention: Attention, cache: KVCache | FrozenPrefix | None = None
    ) -> torch.Tensor:
        """Final hidden states, behind the last norm.

        Args:
            input_ids: [B, Q] int64.
            attention: who sees whom; its query positions are the position ids.
            cache: without it the keys are the queries. With it, keys and values of the queries are first written at the
                columns of their position ids (padding queries write nothing), then attention runs over the columns
                [0, K), K = the width of `attention.key_position`, which must number these columns.

        Returns:
            [B, Q, D] in the model's dtype; rows of padding queries mean nothing.
        """
        if cache is not None:
            if self.training:
                raise RuntimeError("a cached pass needs eval(): gradient checkpointing would drop the cache")
            valid = attention.query_stream != PADDING
            columns = attention.query_position if attention.query_column is None else attention.query_column
            cache.prepare(columns, valid, attention.key_position.shape[1])
        decoder = self.model.base_model if cache is None or self._compiled is None else self._compiled
        with self._dense(cache is not None):
            output = decoder(
                input_ids=input_ids,
                attention_mask=self._mask(attention),
                position_ids=attention.query_position,
                use_cache=cache is not None,
                **({} if cache is None else {self.cache_argument: cache}),
            )
        return output.last_hidden_state

    def causal_hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The AR model's own pass: [B, T] ids, aligned to the left -> [B, T, D]; nothing to the right matters."""
        return self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., V] float32, with the scale and the soft cap of the architecture.

        The mask token's entry, if there is one, is NEVER_SAMPLED: no decoder writes it, it carries no probability.
        """
        return self.logits_of(lm_head(self.model)(hidden))

    def logits_of(self, outputs: torch.Tensor) -> torch.Tensor:
        """[..., V] outputs of the LM head alone -> the same as `logits`; `outputs` may be overwritten."""
        config = self.model.config
        logits = outputs.float()
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
            logits = cap * (logits / cap).tanh()
        if self.mask_token_id == NO_MASK:
            return logits
        # In place: no operation above keeps its last result for the backward pass, and [..., V] is the largest tensor.
        return logits.index_fill_(-1, torch.tensor(self.mask_token_id, device=logits.device), NEVER_SAMPLED)

    def head_parameters(self) -> list[nn.Parameter]:
        """The LM head's matrix [V, D] and its bias [V] if it has one; a tied embedding is this very matrix."""
        head = lm_head(self.model)
        return [head.get_parameter(name) for name in ("weight", "bias") if getattr(head, name, None) is not None]

    @contextmanager
    def _dense(self, cached: bool) -> Iterator[None]:
        """Cached passes of a model with FlexAttention attend densely: each has few queries, and other keys."""
        config = self.model.config
        if not cached or config._attn_implementation != "flex_attention":
            yield
            return
        config._attn_implementation = "sdpa"
        try:
            yield
        finally:
            config._attn_implementation = "flex_attention"

    def _mask(self, attention: Attention) -> torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask]:
        """One mask for a decoder of one layer kind, else a mask for each kind."""
        masks = {kind: self._one_mask(attention, window) for kind, window in self._windows.items()}
        return next(iter(masks.values())) if len(masks) == 1 else masks

    def _one_mask(self, attention: Attention, window: int | None) -> torch.Tensor | BlockMask:
        """[B, 1, Q, K] added to the scores; a BlockMask for FlexAttention."""
        if self.model.config._attn_implementation == "flex_attention":
            return attention.flex(window)
        visible = attention.dense(window)[:, None]
        # Not bool: SDPA would make this of it in every layer, and keep each one for the backward pass.
        hidden = torch.finfo(self.dtype).min
        return torch.zeros_like(visible, dtype=self.dtype).masked_fill_(~visible, hidden)
